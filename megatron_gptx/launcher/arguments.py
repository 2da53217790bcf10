"""The arguments of the scripts that read a trained model; a dry run of the launcher knows them."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.paths import expand_home
from megatron_gptx.config.yaml_reader import closest

OF_THE_LAUNCHER = ("--set", "--dry-run", "--requeue", "--help")


def meant(argument: str, names: Iterable[str], program: str) -> str:
    """Return what somebody who gave an unknown argument may have meant.

    Args:
        argument: the word.
        names: the options that there are.
        program: what shows them where it is asked for `--help`.
    """
    if Path(argument).suffix in {".yml", ".yaml"}:
        return "; name all configurations before the first option"
    if argument.startswith("--") and "." in argument and "=" in argument:
        return f"; did you mean --set {argument.removeprefix('--')}?"
    guess = closest(argument.partition("=")[0], names)
    return f"; did you mean {guess}?" if guess else f"; see {program} --help"


class Once(argparse.Action):
    """Stores a value, and refuses a second one: it would replace the first without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the value."""
        if (first := getattr(namespace, self.dest)) is not None:
            parser.error(f"argument {option_string}: given twice, with {first} and {values}")
        setattr(namespace, self.dest, values)


class ScriptParser(argparse.ArgumentParser):
    """Makes a UserError of a mistake, and names a mistyped option before one that is missing."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return what a script is asked for."""
        names = [name for name in self._option_string_actions if name != "--config"]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                does = meant(word, [*names, *OF_THE_LAUNCHER], self.prog)
                raise UserError(f"{self.prog} does not know {name}{does}")
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def script_parser(script: str, prog: str | None) -> ScriptParser:
    """Return what parses the arguments of `generate.py` or `evaluate.py`."""
    parser = ScriptParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--checkpoint",
        type=expand_home,
        action=Once,
        metavar="STEP|PATH",
        help="a step of this run, or the folder of a checkpoint or a run; default: the newest",
    )
    if script == "evaluate.py":
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    else:
        parser.add_argument(
            "--prompt",
            required=True,
            action="append",
            help="text to continue; given several times, each is continued by itself",
        )
        parser.add_argument(
            "--output", type=expand_home, action=Once, help="also write what is printed here"
        )
    return parser
