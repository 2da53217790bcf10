"""Parts of full matrices that cover them."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def every_pair(*axes: Iterable[Any]) -> list[Any]:
    """Return all combinations of the axes' values, those marked that add no new pair of values.

    `make test` runs the others: of any two axes, each value meets each value.
    """
    values = [list(axis) for axis in axes]
    rows = list(product(*(range(len(axis)) for axis in values)))
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), set()
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(values, row, strict=True)),
            marks=() if row in chosen else pytest.mark.extended,
        )
        for row in rows
    ]
