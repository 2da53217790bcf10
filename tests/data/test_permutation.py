"""The computed order is a bijection, the same everywhere, and looks random."""

import itertools

import numpy as np
import pytest

from megatron_gptx.data.permutation import Permutation


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 100, 1000, 1023, 1025, 4099])
def test_every_index_appears_exactly_once(size):
    for key in (0, 1, 2**63 - 1):
        order = Permutation(size, key)
        assert sorted(order.many(np.arange(size)).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 5, 17, 1000, 2**31 + 11, 10**12 + 39, 2**61])
def test_scalar_and_vectorised_agree(size):
    order = Permutation(size, 77)
    indices = [i * (size - 1) // 49 for i in range(50)]
    assert order.many(indices).tolist() == [order(i) for i in indices]


def test_the_order_is_pinned_on_every_machine():
    # The constants are the contract: another value here breaks the resumption of every old run.
    assert [Permutation(10, 1)(i) for i in range(10)] == [2, 4, 8, 1, 3, 7, 9, 5, 6, 0]
    assert [Permutation(10**12, 1234)(i) for i in range(3)] == [
        352860940512,
        928126032601,
        964134797697,
    ]


def test_another_key_is_another_order():
    orders = {tuple(Permutation(100, key).many(np.arange(100)).tolist()) for key in range(50)}
    assert len(orders) == 50


def test_first_places_and_neighbours_look_random():
    # 6,000 keys: each of 12 values should stand first 500 times; 5 standard deviations are 108.
    counts = np.bincount([Permutation(12, key)(0) for key in range(6000)], minlength=12)
    assert abs(counts - 500).max() < 108
    # In a random order of n values the mean distance of neighbours is (n + 1) / 3; its standard
    # deviation over n places is below n / 4 / sqrt(n).
    n = 40_000
    steps = np.abs(np.diff(Permutation(n, 5).many(np.arange(n))))
    assert abs(steps.mean() - n / 3) < 5 * n / 4 / n**0.5


def test_all_orders_of_few_samples_occur():
    seen = {tuple(Permutation(3, key)(i) for i in range(3)) for key in range(200)}
    assert seen == set(itertools.permutations(range(3)))


def test_few_values_walk_far():
    # The Feistel domain is at most a near-square: cycle walking costs little at any size.
    for size in (2, 3, 10, 10**6 + 1, 10**12 + 1):
        order = Permutation(size, 0)
        assert order._height * order._width <= size + 2 * size**0.5 + 1
