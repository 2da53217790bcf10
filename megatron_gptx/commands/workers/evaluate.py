"""Measure a trained model's validation loss; started by `gptx evaluate`."""

import sys

from megatron_gptx.inference.evaluate import main

if __name__ == "__main__":
    sys.exit(main("gptx evaluate CONFIG"))
