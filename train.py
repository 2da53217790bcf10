"""Train one rank; started by deepy.py."""

from megatron_gptx.training.rank_main import main

if __name__ == "__main__":
    main()
