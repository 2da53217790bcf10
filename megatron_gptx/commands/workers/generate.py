"""Continue a prompt with a trained model; started by `gptx generate`."""

import sys

from megatron_gptx.inference.generate import main

if __name__ == "__main__":
    sys.exit(main("gptx generate CONFIG"))
