"""Paths as people write them: `~` stands for a home folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:\{[^}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")

_WORD = re.compile(r"(--[a-z-]+=)(~(?:/.*)?)")


def expand(text: str) -> str:
    """Return a path with `~` or `~USER` at its start replaced by that home folder.

    A configuration means the same whoever reads it and is saved with the run, so variables are
    refused: a shell replaces them on the command line.

    Raises:
        ValueError: the home folder is not known, or a variable is in the path.
    """
    if found := _VARIABLE.search(text):
        raise ValueError(
            f"holds the variable {found[0]}, which is not replaced here: write the path out, or "
            "let a shell replace it on the command line, as in --set output.run_dir=$SCRATCH/x"
        )
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        home = text.partition("/")[0]
        raise ValueError(f"the home folder {home} is not known: write the path out") from None


def expand_given(text: str) -> str:
    """Return a path that must not be empty, expanded.

    Raises:
        ValueError: it is empty, or cannot be expanded.
    """
    if not text.strip():
        raise ValueError("the path is empty: name one, or leave the option out")
    return expand(text)


def expand_words(words: Iterable[str]) -> list[str]:
    """Return a command line in which `--option=~/x`, which shells leave alone, means the home."""
    return [
        found[1] + expand_home(found[2]) if (found := _WORD.fullmatch(word)) else word
        for word in words
    ]


def expand_home(word: str) -> str:
    """Return a path of a command line with `~` at its start replaced, where that home is known."""
    return os.path.expanduser(word)  # noqa: PTH111 - pathlib raises for other homes


# An option whose default is empty takes an empty path as well.
PathText = Annotated[str, AfterValidator(expand)]
GivenPath = Annotated[str, AfterValidator(expand_given)]
