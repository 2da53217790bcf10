"""Token files on disk: MMIDIDX version 1, which Megatron-LM and GPT-NeoX read and write.

A dataset is two files, PREFIX.bin (token ids, back to back) and PREFIX.idx. docs/data-format.md
gives the layout byte by byte. Nothing of ours is ever added to either file.
"""

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.mmididx import (
    HEADER,
    PathLike,
    bin_path,
    check_document_starts,
    check_pointers,
    idx_path,
    missing,
    read_header,
)


class IndexedDataset:
    """A dataset on disk, read through memory maps.

    Opening checks the header, the sizes of both files and every pointer, in bounded memory. The
    object holds no lock and no position, so forked processes and threads may share it, and it
    pickles as its prefix.

    Attributes:
        lengths: (sequences,) int32, tokens per sequence.
        pointers: (sequences,) int64, first **byte** of each sequence in the .bin.
        document_starts: (documents + 1,) int64, first sequence of each document.
        num_tokens: tokens in all sequences together.
        mapping: the .bin as it is mapped into memory.

    Raises:
        UserError: a file is missing, truncated, of another format, or contradicts the other.
    """

    def __init__(self, prefix: PathLike) -> None:
        self.prefix = Path(prefix)
        for path in (idx_path(prefix), bin_path(prefix)):
            if not path.is_file():
                raise UserError(missing(prefix, path))
        index = _map(idx_path(prefix))
        self.dtype, self.num_sequences, num_starts = read_header(idx_path(prefix), index)
        self.num_documents = num_starts - 1

        # The header is 34 bytes, so these views are unaligned: fine to slice, but searchsorted
        # would copy all of them.
        at = HEADER.size
        self.lengths = np.frombuffer(index, "<i4", self.num_sequences, at)
        at += self.lengths.nbytes
        self.pointers = np.frombuffer(index, "<i8", self.num_sequences, at)
        at += self.pointers.nbytes
        self.document_starts = np.frombuffer(index, "<i8", num_starts, at)

        tokens = _map(bin_path(prefix))
        check_document_starts(self)
        contiguous = check_pointers(self, len(tokens))
        self._tokens = np.frombuffer(tokens, self.dtype)
        self._offsets = None if contiguous else _cumulative(self.lengths)
        self.num_tokens = self._tokens.size if contiguous else int(self._offsets[-1])  # type: ignore[index]
        self.mapping = tokens

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[Path]]:
        return IndexedDataset, (self.prefix,)

    def sequence_offset(self, sequence: int) -> int:
        """Return how many tokens precede a sequence; `num_sequences` gives all of them."""
        if sequence == self.num_sequences:
            return self.num_tokens
        if self._offsets is not None:
            return int(self._offsets[sequence])
        return int(self.pointers[sequence]) // self.dtype.itemsize

    def token_offset(self, document: int) -> int:
        """Return how many tokens precede a document; `num_documents` gives all of them."""
        return self.sequence_offset(int(self.document_starts[document]))

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """Return the token ids of one document, all its sequences joined."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self.read(self.token_offset(index), self.token_offset(index + 1))

    def document_lengths(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return how many tokens each of documents [first, last) has."""
        starts = self.document_starts[first : last + 1]
        offsets = _cumulative(self.lengths[starts[0] : starts[-1]])
        return np.diff(offsets[starts - starts[0]])

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Return tokens [start, stop) of all documents in a row, as the file's own dtype.

        Where sequences lie back to back, as every known writer leaves them, this is a view.
        """
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        if self._offsets is None:
            return self._tokens[start:stop]
        pieces = []
        sequence = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._offsets[sequence + 1]))
            at = int(self.pointers[sequence]) // self.dtype.itemsize
            at += start - int(self._offsets[sequence])
            pieces.append(self._tokens[at : at + end - start])
            start, sequence = end, sequence + 1
        return np.concatenate(pieces) if pieces else self._tokens[:0]

    @property
    def contiguous(self) -> bool:
        """Whether all tokens lie back to back in the .bin, from its first byte on."""
        return self._offsets is None

    def take(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.integer]:
        """Return the tokens at some positions of the stream that `read` gives."""
        if self._offsets is None:
            return self._tokens[positions]
        sequences = np.searchsorted(self._offsets, positions, side="right") - 1
        inside = positions - self._offsets[sequences]
        return self._tokens[self.pointers[sequences] // self.dtype.itemsize + inside]

    def windows(self, length: int) -> npt.NDArray[np.integer] | None:
        """Return a (num_tokens - length + 1, length) view whose row i begins at token i.

        None where the tokens do not lie back to back, or are fewer than `length`.
        """
        if self._offsets is not None or self.num_tokens < length:
            return None
        return np.lib.stride_tricks.sliding_window_view(self._tokens, length)


def _cumulative(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""  # nothing to map
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
