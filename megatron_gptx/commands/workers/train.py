"""Train one rank; started by `gptx train`."""

from megatron_gptx.training.start import main

if __name__ == "__main__":
    main()
