"""`gptx COMMAND ...`: every command of the package behind one name.

A command's module is imported when it is asked for: a plan needs no torch, and a list no module.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_gptx import __version__
from megatron_gptx.distributed.log import run_program

# What each command does; its module in this package has its name.
COMMANDS = {
    "train": "train a model, or go on with a run, on the devices there are",
    "evaluate": "measure the validation loss of a run's newest checkpoint",
    "generate": "continue a prompt with a trained model",
    "plan": "print parameters, memory, traffic and arithmetic of every stage",
    "show": "print every option, and where its value comes from",
    "preprocess": "turn raw text into a token dataset",
    "tokenizer": "learn a vocabulary from raw text",
    "inspect": "show what a token dataset holds",
    "verify": "read every byte of token datasets, and say what is wrong",
    "merge": "join token datasets to one",
    "split": "divide a token dataset by documents",
    "convert": "translate a configuration of GPT-NeoX or Megatron-LM",
    "checkpoints": "list, verify or compare the checkpoints of a run",
    "prune": "delete the checkpoints of a run that need not be kept",
    "plot": "draw the loss curves of runs into a picture",
    "build": "compile the kernels for this machine ahead of their first use",
}
# The launcher runs these; the first three on ranks.
LAUNCHED = ("train", "evaluate", "generate", "show")
WORKERS = Path(__file__).resolve().parent / "workers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status. Without words, this is the program `gptx`."""
    return run_program(lambda: _main(sys.argv[1:])) if argv is None else _main(argv)


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"megatron_gptx {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        print(f"gptx: no command {command!r}; {hint}see gptx --help", file=sys.stderr)
        return 2
    if command in LAUNCHED:
        launcher = importlib.import_module("megatron_gptx.launcher.main")
        return int(launcher.main(words, WORKERS, "gptx"))
    from megatron_gptx.config.paths import expand_words  # a list of commands needs no pydantic

    module = importlib.import_module(f"megatron_gptx.commands.{command}")
    return int(module.main(expand_words(rest), f"gptx {command}"))


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: gptx COMMAND ...",
            "",
            *(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items()),
            "",
            "gptx COMMAND --help shows the arguments of a command, gptx --version the version.",
        ]
    )
