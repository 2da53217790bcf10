"""Where documents begin among the tokens of a range, in memory that does not grow with it."""

import numpy as np
import numpy.typing as npt

from megatron_gptx.dataset.indexed_dataset import IndexedDataset

Integers = npt.NDArray[np.int64]

_GUIDES = 1 << 16  # beginnings kept in memory; the others are read where they are needed


class DocumentIndex:
    """The documents [first, last) of a dataset; tokens are counted from the first one's first.

    Boundary d is where document d of the range begins; the last one, `num_documents`, is its end.
    """

    def __init__(self, source: IndexedDataset, documents: range) -> None:
        self.source, self.documents = source, documents
        self.num_documents = len(documents)
        self.first_token = source.token_offset(documents.start)
        self.num_tokens = source.token_offset(documents.stop) - self.first_token
        # Where sequences do not lie back to back, their pointers do not count tokens.
        contiguous = source.windows(1) is not None
        self._offsets = None if contiguous else np.append(0, np.cumsum(source.lengths, dtype=int))
        self._stride = max(1, -(-(self.num_documents + 1) // _GUIDES))
        self._guides = self.boundaries(np.arange(0, self.num_documents + 1, self._stride))

    def boundaries(self, numbers: Integers) -> Integers:
        """Return the token at each of these boundaries, in the shape given."""
        sequences = self.source.document_starts[self.documents.start + numbers]
        if self._offsets is not None:
            return self._offsets[sequences] - self.first_token
        offsets = np.full(sequences.shape, self.source.num_tokens)
        inside = sequences < self.source.num_sequences
        offsets[inside] = self.source.pointers[sequences[inside]] // self.source.dtype.itemsize
        return offsets - self.first_token

    def boundaries_up_to(self, tokens: Integers) -> Integers:
        """Return how many boundaries lie at or before each of (n,) tokens."""
        low = (np.searchsorted(self._guides, tokens, side="right") - 1) * self._stride
        high = np.minimum(low + self._stride, self.num_documents + 1)
        while (wide := high - low > 1).any():
            # Boundary `low` is at or before the token, boundary `high` is not, or is none.
            middle = (low + high) // 2
            before = self.boundaries(middle) <= tokens
            low = np.where(wide & before, middle, low)
            high = np.where(wide & ~before, middle, high)
        return low + 1

    def inside(self, starts: Integers, stops: Integers) -> tuple[Integers, Integers]:
        """Return the boundaries in each (start, stop], as (rows, tokens): row i has those of i.

        A boundary between which and the next one there is no token counts once per document.
        """
        first = self.boundaries_up_to(starts)
        counts = self.boundaries_up_to(stops) - first
        rows = np.repeat(np.arange(starts.size), counts)
        nth = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.boundaries(first[rows] + nth)
