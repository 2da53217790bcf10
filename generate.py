"""Continue a prompt with a trained model; started by deepy.py."""

import sys

from megatron_gptx.distributed.log import run_program
from megatron_gptx.inference.generate import main

if __name__ == "__main__":
    sys.exit(run_program(lambda: main("./deepy.py generate.py CONFIG")))
