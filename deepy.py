#!/usr/bin/env python3
"""Launch a script on every rank: ./deepy.py train.py configs/1B.yml"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv" / "bin" / "python"

if __name__ == "__main__":
    # `make` installs into .venv; a newcomer's shell may not have activated it.
    if sys.prefix == sys.base_prefix and VENV.exists():
        os.execv(VENV, [str(VENV), *sys.argv])

    try:
        from megatron_gptx.distributed.log import run_program
        from megatron_gptx.launcher.main import main
    except ModuleNotFoundError as error:
        sys.exit(
            f"{error}; install the requirements first: `make .venv/.installed`, or pip install -e ."
        )

    sys.exit(run_program(lambda: main(sys.argv[1:], ROOT)))
