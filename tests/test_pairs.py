"""What the ordinary suite leaves out of a matrix, it has in parts."""

from itertools import product

import pytest

from tests.pairs import cover, pairs, pairwise

MATRICES = {
    "three switches": list(product("ab", "cde", "fghi")),
    "equal values": list(product((0, 1, 2), (0, 1), (0, 1))),
    "with gaps": [(1, "x", True), (2, "x", False), (2, "y", True), (1, "x", False)],
    "one": [(1, 2, 3)],
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_pair_of_values_is_covered(matrix):
    all_of_them, some = (
        {pair for each in choices for pair in pairs(each)}
        for choices in (MATRICES[matrix], cover(MATRICES[matrix]))
    )
    assert some == all_of_them


def test_what_a_cover_leaves_out_is_extended_and_nothing_is_lost():
    choices = MATRICES["three switches"]
    parameters = pairwise(choices)
    assert [getattr(each, "values", each) for each in parameters] == choices
    # Twelve is the least: so many pairs has the second switch with the third.
    assert sum(not hasattr(each, "marks") for each in parameters) == 12
