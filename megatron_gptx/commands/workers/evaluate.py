"""Measure a trained model's validation loss; started by `gptx evaluate`."""

import sys

from megatron_gptx.distributed.log import run_program
from megatron_gptx.inference.evaluate import main

if __name__ == "__main__":
    sys.exit(run_program(lambda: main("gptx evaluate CONFIG")))
