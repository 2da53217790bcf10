"""What a dataset's tokens look like, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.indexed_dataset import IndexedDataset

_CHUNK = 1 << 22  # tokens, or documents, looked at together


class TokenStream(Protocol):
    """Tokens in a row: a whole dataset, or the part of it that a GPTDataset covers."""

    num_tokens: int

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Return tokens [start, stop)."""
        ...


def id_range(ids: npt.NDArray[np.integer]) -> tuple[int, int]:
    """Return the smallest and the largest of some ids, at least one; a file may lie behind them."""
    chunks = [ids[start : start + _CHUNK] for start in range(0, ids.size, _CHUNK)]
    return min(int(chunk.min()) for chunk in chunks), max(int(chunk.max()) for chunk in chunks)


def token_counts(stream: TokenStream) -> npt.NDArray[np.int64]:
    """Return how often each id occurs, (largest id + 1,); of labels, those that are learned.

    Raises:
        UserError: an id is negative.
    """
    counts = np.zeros(0, np.int64)
    for ids in _chunks(stream):
        if ids.min() == IGNORE:
            ids = ids[ids != IGNORE]
        if ids.min(initial=0) < 0:
            raise UserError(f"{_name(stream)}: token id {ids.min()} is negative")
        here = np.bincount(ids, minlength=counts.size)
        here[: counts.size] += counts
        counts = here
    return counts


def unigram_entropy(stream: TokenStream) -> float:
    """Return the entropy of the ids' frequencies, in nats per token.

    It is the loss of the best model that ignores context: training beats it, or has learned
    nothing but frequencies.
    """
    return blend_entropy([stream], [1.0])


def blend_entropy(streams: Sequence[TokenStream], weights: Sequence[float]) -> float:
    """Return `unigram_entropy` of streams that are mixed by weights, which add up to 1."""
    frequencies = np.zeros(0)
    for stream, weight in zip(streams, weights, strict=True):
        counts = token_counts(stream)
        here = np.zeros(max(counts.size, frequencies.size))
        here[: counts.size] = weight * counts / max(counts.sum(), 1)
        here[: frequencies.size] += frequencies
        frequencies = here
    frequencies = frequencies[frequencies > 0]
    return max(0.0, -float((frequencies * np.log(frequencies)).sum()))


def length_histogram(dataset: IndexedDataset) -> list[tuple[int, int]]:
    """Return (upper bound, documents) per power of two: documents of up to that many tokens.

    The first bound is 0, for empty documents; the last one holds the longest document.
    """
    bins = np.zeros(65, np.int64)
    for first in range(0, dataset.num_documents, _CHUNK):
        last = min(first + _CHUNK, dataset.num_documents)
        lengths = dataset.document_lengths(first, last)
        # frexp(n - 1) counts the bits of n - 1: 2**k tokens fall in the bin of 2**k, one more
        # in the next.
        exponents = np.frexp(np.maximum(lengths - 1, 0).astype(np.float64))[1]
        bins += np.bincount(np.where(lengths == 0, 0, exponents + 1), minlength=bins.size)
    used = np.flatnonzero(bins)
    last_bin = int(used[-1]) if used.size else -1
    return [(0 if i == 0 else 2 ** (i - 1), int(bins[i])) for i in range(last_bin + 1)]


@dataclass(frozen=True)
class Duplicates:
    """Documents that repeat an earlier one, id by id; empty ones do not count.

    `largest` holds (documents, number of the first one) of the largest groups of equals.
    """

    num_documents: int
    num_tokens: int
    largest: list[tuple[int, int]]


def find_duplicates(dataset: IndexedDataset, *, num_groups: int = 5) -> Duplicates:
    """Return how much of a dataset repeats itself; takes 16 bytes of memory per document."""
    digests = np.zeros((dataset.num_documents, 2), np.uint64)
    lengths = dataset.document_lengths(0, dataset.num_documents)
    end = 0
    for number, length in enumerate(lengths.tolist()):
        start, end = end, end + length
        digest = hashlib.blake2b(dataset.read(start, end).tobytes(), digest_size=16)
        digests[number] = np.frombuffer(digest.digest(), np.uint64)
    numbers = np.flatnonzero(lengths)
    _, first, counts = np.unique(digests[numbers], axis=0, return_index=True, return_counts=True)
    repeats = np.ones(numbers.size, bool)
    repeats[first] = False
    order = np.lexsort((first, -counts))[:num_groups]
    return Duplicates(
        int(repeats.sum()),
        int(lengths[numbers[repeats]].sum()),
        [(int(counts[i]), int(numbers[first[i]])) for i in order if counts[i] > 1],
    )


def _chunks(stream: TokenStream) -> Iterator[npt.NDArray[np.integer]]:
    for start in range(0, stream.num_tokens, _CHUNK):
        yield stream.read(start, min(start + _CHUNK, stream.num_tokens))


def _name(stream: TokenStream) -> str:
    return str(getattr(stream, "prefix", "dataset"))
