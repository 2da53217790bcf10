"""Run a command of this checkout with its `.venv`, whatever the shell has activated."""

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv" / "bin" / "python"


def run(command: str) -> NoReturn:
    """Run a module of megatron_gptx.commands with this process's words, and end with its status."""
    if sys.prefix == sys.base_prefix and VENV.exists():
        os.execv(VENV, [str(VENV), *sys.argv])
    # In place of tools/, whose file names are not for `import`.
    sys.path[0] = str(ROOT)
    from megatron_gptx.config.paths import expand_words

    module = importlib.import_module(f"megatron_gptx.commands.{command}")
    log = importlib.import_module("megatron_gptx.distributed.log")
    sys.exit(log.run_program(lambda: module.main(expand_words(sys.argv[1:]), sys.argv[0])))
