"""Train one rank; started by deepy.py."""

from megatron_gptx.training.start import main

if __name__ == "__main__":
    main()
