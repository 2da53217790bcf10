"""What the command lines of evaluation and generation have in common."""

import argparse
from collections.abc import Sequence
from typing import Any

from megatron_gptx.config.paths import expand_home


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


def argument_parser(prog: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that both scripts take."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--checkpoint",
        action=Once,
        type=expand_home,
        metavar="STEP|PATH",
        help="a step of this run, or the folder of a checkpoint or a run; default: the newest",
    )
    return parser
