"""Few combinations of switches in which each two values meet, in the place of all combinations."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def pairs(combination: Sequence[Any]) -> set[Any]:
    """Return every two values of a combination, with the places they have in it."""
    return set(combinations(enumerate(combination), 2))


def cover(choices: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Return some of the combinations, in which each pair occurs that occurs in any of them.

    Of those that bring as many pairs, the first one is taken.
    """
    choices = list(choices)
    missing = set().union(*map(pairs, choices))
    chosen = []
    while missing:
        chosen.append(max(choices, key=lambda each: len(pairs(each) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def pairwise(choices: Iterable[Sequence[Any]]) -> list[Any]:
    """Return all combinations as parameters of a test, extended but for those of a cover."""
    choices = list(choices)
    often = cover(choices)
    return [each if each in often else extended(*each) for each in choices]


def extended(*values: Any) -> Any:
    """Return the parameters of a test that only `make test-extended` runs."""
    return pytest.param(*values, marks=pytest.mark.extended)
