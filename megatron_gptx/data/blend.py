"""Several datasets as one, in given proportions."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.data.document_index import Integers
from megatron_gptx.data.gpt_dataset import GPTDataset, Samples

_BLOCK = 1 << 16  # samples whose order is worked out together


class Proportions:
    """Which dataset each sample of a blend comes from, and which of that dataset's samples it is.

    Nothing is drawn: after n samples dataset i has had `weight_i * n` of them, but for less than
    one in the first block of 65,536 samples, and for less than two in all others. At the ends of
    blocks the counts are a formula of n, so that any sample is found without those before it;
    inside a block every sample goes to the dataset that would otherwise be the first to fall
    behind. One block is kept.

    Source of the bound, and of the rule inside a block: Tijdeman 1980, "The chairman assignment
    problem", Discrete Mathematics 32.

    Args:
        weights: positive; only their proportions matter.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        # As they are written: 0.1 is a tenth. In whole numbers, every machine counts alike.
        exact = [Fraction(str(weight)) for weight in weights]
        assert exact, "a blend of nothing"
        assert min(exact) > 0, weights
        unit = lcm(*(weight.denominator for weight in exact))
        self.weights = [int(weight * unit) for weight in exact]
        self._known = -1
        self._pattern = self._ranks = np.empty(0, np.int64)
        self._before: Integers = np.empty(0, np.int64)

    def locate(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return, for (n,) positions, the dataset of each and the position in it."""
        if len(self.weights) == 1:
            return np.zeros_like(positions), positions
        datasets, inner = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // _BLOCK
        for block in np.unique(blocks).tolist():
            pattern, ranks, before = self._work_out(block)
            here = blocks == block
            at = positions[here] - block * _BLOCK
            datasets[here] = pattern[at]
            inner[here] = before[pattern[at]] + ranks[at]
        return datasets, inner

    def counts(self, num_samples: int) -> list[int]:
        """Return how many of the first samples each dataset has."""
        if len(self.weights) == 1:
            return [num_samples]
        block, rest = divmod(num_samples, _BLOCK)
        pattern, _, before = self._work_out(block)
        return (before + np.bincount(pattern[:rest], minlength=before.size)).tolist()

    def _work_out(self, block: int) -> tuple[Integers, Integers, Integers]:
        if block != self._known:
            first = block * _BLOCK
            before, after = (_divide(n, self.weights) for n in (first, first + _BLOCK))
            self._before = np.array(before)
            self._pattern = _spread(first, before, after, self.weights)
            order = np.argsort(self._pattern, kind="stable")
            sizes = np.bincount(self._pattern, minlength=len(before))
            self._ranks = np.empty_like(order)
            self._ranks[order] = np.arange(_BLOCK) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            self._known = block
        return self._pattern, self._ranks, self._before


class Share(NamedTuple):
    """What one dataset of a blend contributes to a number of samples."""

    prefix: Path
    weight: float
    samples: int
    tokens: int
    epochs: float


class BlendedDataset:
    """Samples of several datasets, by position; each dataset goes on where it was left.

    Args:
        datasets: with samples of one length.
        weights: how many samples each gives, in proportion.
    """

    def __init__(self, datasets: Sequence[GPTDataset], weights: Sequence[float]) -> None:
        assert len(datasets) == len(weights), (len(datasets), len(weights))
        self.datasets = list(datasets)
        self.weights = [weight / sum(weights) for weight in weights]
        self.proportions = Proportions(weights)
        self.seq_length = datasets[0].seq_length
        self.samples_per_epoch = sum(dataset.samples_per_epoch for dataset in datasets)
        self.num_tokens = sum(dataset.num_tokens for dataset in datasets)

    def read_samples(self, positions: npt.ArrayLike) -> Samples:
        """Return the samples at (n,) positions."""
        if len(self.datasets) == 1:
            return self.datasets[0].read_samples(positions)
        numbers, inner = self.proportions.locate(np.asarray(positions, np.int64))
        used = np.unique(numbers).tolist()
        parts = [self.datasets[number].read_samples(inner[numbers == number]) for number in used]
        # The parts one after the other, put back where they belong.
        places = np.concatenate([np.flatnonzero(numbers == number) for number in used])
        order = np.argsort(places)
        tokens, labels, row_starts = zip(*parts, strict=True)
        return Samples(
            np.concatenate(tokens)[order],
            np.concatenate(labels)[order],
            None if row_starts[0] is None else np.concatenate(row_starts)[order],
        )

    def prefix_of(self, position: int) -> Path:
        """Return the prefix of the dataset that the sample at a position comes from."""
        numbers, _ = self.proportions.locate(np.array([position]))
        return self.datasets[int(numbers[0])].source.prefix

    def name_samples(self, first: int, count: int) -> str:
        """Return consecutive samples as text: their positions here and in each dataset."""
        numbers, inner = self.proportions.locate(np.arange(first, first + count))
        parts = [
            f"{self.datasets[number].source.prefix} "
            f"{inner[numbers == number].min()} to {inner[numbers == number].max()}"
            for number in np.unique(numbers).tolist()
        ]
        return f"samples {first} to {first + count - 1} ({', '.join(parts)})"

    def shares(self, num_samples: int) -> list[Share]:
        """Return what each dataset contributes to the first samples."""
        shares = []
        for dataset, weight, samples in zip(
            self.datasets, self.weights, self.proportions.counts(num_samples), strict=True
        ):
            epochs = samples / dataset.samples_per_epoch
            tokens = dataset.count_tokens(samples)
            shares.append(Share(dataset.source.prefix, weight, samples, tokens, epochs))
        return shares


def table(shares: Sequence[Share], title: str) -> str:
    """Return shares as text, one dataset per line."""
    width = max(len(str(share.prefix)) for share in shares)
    lines = [f"{title:<{width + 2}}  weight        tokens    epochs"]
    for share in shares:
        lines.append(
            f"  {share.prefix!s:<{width}}  {share.weight:>6.2%} {share.tokens:>13,} "
            f"{share.epochs:>9.3f}"
        )
    return "\n".join(lines)


def _divide(number: int, weights: Sequence[int]) -> list[int]:
    """Return whole numbers in proportion to weights, with this sum; none falls as the sum grows."""
    counts = [0] * len(weights)

    def divide(number: int, datasets: list[int]) -> None:
        if len(datasets) == 1:
            counts[datasets[0]] = number
            return
        # In halves of about equal weight: what one rounding adds to an error, the next one halves.
        sums = list(accumulate(weights[i] for i in datasets))
        cut = min(range(1, len(datasets)), key=lambda at: abs(2 * sums[at - 1] - sums[-1]))
        first = (2 * number * sums[cut - 1] + sums[-1]) // (2 * sums[-1])
        divide(first, datasets[:cut])
        divide(number - first, datasets[cut:])

    divide(number, sorted(range(len(weights)), key=lambda i: (-weights[i], i)))
    return counts


def _spread(
    first: int, before: Sequence[int], after: Sequence[int], weights: Sequence[int]
) -> Integers:
    """Return which dataset each sample from `first` on comes from, as evenly as can be.

    Dataset i has had before[i] samples, and has after[i] at the end. A sample may be taken as soon
    as its dataset does not run ahead by it, and the one that would first fall behind goes first:
    with k datasets, and counts that begin in proportion, none is ever ahead or behind by more than
    1 - 1 / (2k - 2).
    """
    total, parts = sum(weights), 2 * max(len(weights), 2) - 2
    counts = list(before)

    def earliest(dataset: int) -> int:
        return -(-(counts[dataset] * parts + 1) * total // (parts * weights[dataset])) - 1

    def latest(dataset: int) -> int:
        return ((counts[dataset] + 1) * parts - 1) * total // (parts * weights[dataset])

    waiting = [
        (earliest(i), i) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a < b
    ]
    heapq.heapify(waiting)
    ready: list[tuple[int, int]] = []
    order = np.empty(sum(after) - sum(before), np.int64)
    for place in range(order.size):
        # Where the block's end lets none be early enough, the next one is taken before its time.
        while waiting and (waiting[0][0] <= first + place or not ready):
            dataset = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (latest(dataset), dataset))
        dataset = heapq.heappop(ready)[1]
        order[place] = dataset
        counts[dataset] += 1
        if counts[dataset] < after[dataset]:
            heapq.heappush(waiting, (earliest(dataset), dataset))
    return order
