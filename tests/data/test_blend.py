"""Blends keep their proportions at every moment, and lose no sample of any dataset."""

import numpy as np
import pytest

from megatron_gptx.data.blend import BlendedDataset, Proportions, table
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping

RANDOM = np.random.default_rng(0)
WEIGHTS = [
    [1.0],
    [0.7, 0.3],
    [1 / 3, 1 / 3, 1 / 3],
    [0.5, *[1 / 18] * 9],
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    [1.0, 1e-3, 1e-3, 1e-9],
    [1, 1, 2, 3, 5, 8, 13, 21],
    [12_345_678_901.0, 987_654_321.0, 5_555_555.5],
    *[(RANDOM.random(k) ** 4 + 1e-6).tolist() for k in (3, 5, 8, 13, 40)],
]


def errors(weights, datasets, *, counted=0):
    """Return how far each dataset's count is from its share after every sample."""
    shares = np.array(weights) / sum(weights)
    drawn = np.cumsum(datasets[:, None] == np.arange(len(weights)), axis=0)
    return np.abs(counted + drawn - np.arange(1, len(datasets) + 1)[:, None] * shares)


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)} datasets, first {w[0]:g}")
def test_every_prefix_of_ten_thousand_matches_the_weights_within_one_sample(weights):
    datasets, _ = Proportions(weights).locate(np.arange(10_000))
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    assert errors(weights, datasets).max() <= bound + 1e-6  # the weights' own rounding


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)} datasets, first {w[0]:g}")
def test_no_prefix_at_all_is_off_by_two(weights):
    datasets, _ = Proportions(weights).locate(np.arange(3 * 65_536))
    assert errors(weights, datasets).max() < 2
    shares = np.array(weights) / sum(weights)
    for number in (10**6, 10**9 + 7, 10**12):
        counts = Proportions(weights).counts(number)
        assert sum(counts) == number
        assert np.abs(np.array(counts) - number * shares).max() < 2 + number * 1e-15


@pytest.mark.parametrize("weights", WEIGHTS[1:6], ids=str)
def test_each_dataset_is_read_in_its_own_order_without_gaps(weights):
    proportions = Proportions(weights)
    datasets, positions = proportions.locate(np.arange(140_000))
    for number in range(len(weights)):
        own = positions[datasets == number]
        assert np.array_equal(own, np.arange(own.size))
    for at in (0, 1, 777, 65_536, 139_999):
        counts = np.bincount(datasets[:at], minlength=len(weights))
        assert proportions.counts(at) == counts.tolist()


def test_a_far_position_needs_nothing_before_it():
    near = Proportions([0.6, 0.3, 0.1])
    at = 10**12 + np.arange(100)
    datasets, positions = near.locate(at)
    counts = near.counts(int(at[0]))
    for number in range(3):
        own = positions[datasets == number]
        assert np.array_equal(own, counts[number] + np.arange(own.size))
    again = Proportions([0.6, 0.3, 0.1]).locate(at[50:])
    assert np.array_equal(again[0], datasets[50:])
    assert np.array_equal(again[1], positions[50:])


def test_equal_proportions_are_equal_orders():
    one, two = (Proportions(w).locate(np.arange(1000))[0] for w in ([0.2, 0.3], [2, 3.0]))
    assert np.array_equal(one, two)


@pytest.fixture
def blend(make_dataset):
    datasets = [
        GPTDataset(
            make_dataset([range(first, first + n)], name=f"d{first}"),
            8,
            seed=1,
            shaping=Shaping(isolate_documents=True),
        )
        for first, n in ((0, 100), (1000, 300), (2000, 50))
    ]
    return BlendedDataset(datasets, [0.5, 0.3, 0.2])


def test_a_blend_shows_the_samples_of_its_datasets(blend):
    positions = np.arange(60)[::-1]
    tokens, labels, row_start = blend.read_samples(positions)
    numbers, inner = blend.proportions.locate(positions)
    assert set(numbers.tolist()) == {0, 1, 2}
    for row, (number, position) in enumerate(zip(numbers, inner, strict=True)):
        expected = blend.datasets[number].read_samples([position])
        assert np.array_equal(tokens[row], expected.tokens[0])
        assert np.array_equal(labels[row], expected.labels[0])
        assert np.array_equal(row_start[row], expected.row_start[0])
        assert blend.prefix_of(int(positions[row])) == blend.datasets[number].source.prefix


def test_shares_say_samples_tokens_and_epochs_of_each_dataset(blend):
    shares = blend.shares(130)
    assert [share.samples for share in shares] == [65, 39, 26]
    assert [share.prefix.name for share in shares] == ["d0", "d1000", "d2000"]
    assert [share.epochs for share in shares] == [65 / 13, 39 / 38, 26 / 7]
    assert [share.tokens for share in shares] == [5 * 100, 300 + 8, 3 * 50 + 5 * 8]
    lines = table(shares, "plan").splitlines()
    assert lines[0].split() == ["plan", "weight", "tokens", "epochs"]
    assert lines[1].split()[1:] == ["50.00%", "500", "5.000"]
