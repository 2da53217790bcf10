"""What a dataset's tokens look like, in bounded memory."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.indexed_dataset import IndexedDataset

_CHUNK = 1 << 22  # tokens, or documents, looked at together


class TokenStream(Protocol):
    """Tokens in a row: a whole dataset, or the part of it that a GPTDataset covers."""

    num_tokens: int

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Return tokens [start, stop)."""
        ...


def token_counts(stream: TokenStream) -> npt.NDArray[np.int64]:
    """Return how often each id occurs, (largest id + 1,).

    Raises:
        UserError: an id is negative.
    """
    counts = np.zeros(0, np.int64)
    for ids in _chunks(stream):
        if ids.min() < 0:
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


def _chunks(stream: TokenStream) -> Iterator[npt.NDArray[np.integer]]:
    for start in range(0, stream.num_tokens, _CHUNK):
        yield stream.read(start, min(start + _CHUNK, stream.num_tokens))


def _name(stream: TokenStream) -> str:
    return str(getattr(stream, "prefix", "dataset"))
