"""Token files on disk: MMIDIDX version 1, which Megatron-LM and GPT-NeoX read and write.

A dataset is two files, PREFIX.bin (token ids, back to back) and PREFIX.idx. docs/data-format.md
gives the layout byte by byte. Nothing of ours is ever added to either file.
"""

import mmap
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.mmididx import (
    CODES,
    HEADER,
    MAGIC,
    VERSION,
    PathLike,
    bin_path,
    check_document_starts,
    check_pointers,
    idx_path,
    missing,
    read_header,
)
from megatron_gptx.files.synced import copy_bytes, open_at, sync, sync_path

_LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32; a longer document becomes several sequences
_CHUNK = 1 << 20  # index entries written together: bounds memory


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


class Extent(NamedTuple):
    """How much a writer has been given."""

    num_tokens: int = 0
    num_sequences: int = 0
    num_documents: int = 0


class IndexedDatasetWriter:
    """Writes a dataset that becomes visible all at once, in memory that does not grow with it.

    Both files grow under other names and are renamed when whole, the .bin first: wherever the .idx
    can be seen, the dataset is complete. As a context manager it finalises, or on an exception
    leaves nothing behind.

    Args:
        prefix: the dataset's prefix; its folder must exist.
        dtype: one of DTYPES' values; see `token_dtype`.
        folder: where the files grow, on the same file system and for this writer alone; null means
            beside the prefix.
        resume_at: take up what an earlier writer left in `folder`, cut back to this extent.

    Raises:
        UserError: less is left in `folder` than `resume_at` says.
    """

    def __init__(
        self,
        prefix: PathLike,
        dtype: npt.DTypeLike,
        *,
        folder: Path | None = None,
        resume_at: Extent | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in CODES, f"{dtype} has no code that all readers share"
        own_name = f".{self.prefix.name}.{os.getpid()}-{id(self):x}"
        stem = self.prefix.parent / own_name if folder is None else folder / "dataset"
        self._bin_part, self._idx_part = bin_path(stem), idx_path(stem)
        self._extent = resume_at or Extent()
        self._resumable = folder is not None
        sizes = {
            self._bin_part: self._extent.num_tokens * self.dtype.itemsize,
            Path(f"{stem}.lengths"): 4 * self._extent.num_sequences,  # int32 tokens per sequence
            Path(f"{stem}.sequences"): 4 * self._extent.num_documents,  # int32 per document
        }
        self._parts = [*sizes, self._idx_part]
        self._bin, self._lengths, self._sequences = (
            path.open("xb") if resume_at is None else open_at(path, size)
            for path, size in sizes.items()
        )

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.abort()

    @property
    def extent(self) -> Extent:
        """How much was added so far."""
        return self._extent

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return self._extent.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._extent.num_tokens

    def add_document(
        self, tokens: npt.ArrayLike, *, sequence_lengths: list[int] | None = None
    ) -> None:
        """Append one document, as one sequence unless `sequence_lengths` divides it.

        Raises:
            UserError: an id does not fit into the dataset's dtype.
        """
        ids = np.asarray(tokens)
        limits = np.iinfo(self.dtype)
        if ids.size and (ids.min() < limits.min or ids.max() > limits.max):
            raise UserError(
                f"{self.prefix}: token ids {ids.min()} to {ids.max()} do not fit into "
                f"{self.dtype}; the tokenizer gives ids beyond its stated vocabulary size"
            )
        if sequence_lengths is None:
            sequence_lengths = _divide(ids.size)
        assert sum(sequence_lengths) == ids.size, (sequence_lengths, ids.size)
        self._bin.write(ids.astype(self.dtype, copy=False).tobytes())
        self._add_entries(np.array(sequence_lengths), np.array([len(sequence_lengths)]))

    def append_tokens(
        self,
        blocks: Iterable[npt.NDArray[np.integer]],
        lengths: npt.NDArray[np.integer],
        sequences: npt.NDArray[np.integer],
    ) -> None:
        """Append token ids that fit into this writer's dtype; see `append_file`."""
        for ids in blocks:
            self._bin.write(ids.astype(self.dtype, copy=False).tobytes())
        self._add_entries(lengths, sequences)

    def append_file(
        self,
        path: Path,
        lengths: npt.NDArray[np.integer],
        *,
        sequences: npt.NDArray[np.integer] | None = None,
        first_byte: int = 0,
    ) -> None:
        """Append token ids that lie back to back in a file, in this writer's dtype.

        Args:
            path: the file; inside one file system its bytes pass through no process.
            lengths: (n,) tokens per sequence, or where `sequences` is null, per document.
            sequences: (documents,) sequences per document.
            first_byte: of the ids in the file.
        """
        num_bytes = int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        found = path.stat().st_size
        assert found >= first_byte + num_bytes, f"{path}: {found} bytes, needs {num_bytes}"
        with path.open("rb") as part:
            part.seek(first_byte)
            copy_bytes(part, self._bin, num_bytes)
        if sequences is None:
            sequences = np.ones(lengths.size, np.int32)
            if lengths.size and lengths.max() > _LONGEST_SEQUENCE:
                pieces = [_divide(length) for length in lengths.tolist()]
                sequences = np.array([len(piece) for piece in pieces])
                lengths = np.concatenate(pieces)
        self._add_entries(lengths, sequences)

    def save(self) -> None:
        """Make the present extent one that can be resumed at even after a crash of the machine."""
        for file in (self._bin, self._lengths, self._sequences):
            if not file.closed:
                sync(file)

    def complete(self) -> tuple[Path, Path]:
        """Write the index; return the .bin and the .idx that `finalize` will rename."""
        self.save()
        with self._idx_part.open("wb") as index:
            self._write_index(index)
            sync(index)
        self.close()
        return self._bin_part, self._idx_part

    def finalize(self) -> None:
        """Give both files their names; an existing dataset is replaced."""
        try:
            if not self._bin.closed:
                self.complete()
            # An old index must not be seen with new tokens.
            idx_path(self.prefix).unlink(missing_ok=True)
            self._bin_part.replace(bin_path(self.prefix))
            self._idx_part.replace(idx_path(self.prefix))
            sync_path(self.prefix.parent)
            self._remove()
        except BaseException:
            if not self._resumable:
                self.abort()
            raise

    def close(self) -> None:
        """Leave everything as it is, for another writer to resume."""
        for file in (self._bin, self._lengths, self._sequences):
            file.close()

    def abort(self) -> None:
        """Remove what was written; the dataset's own names were never touched."""
        for file in (self._bin, self._lengths, self._sequences):
            with suppress(OSError):  # closing flushes, which a full disk refuses
                file.close()
        self._remove()

    def _remove(self) -> None:
        for path in self._parts:
            path.unlink(missing_ok=True)

    def _add_entries(
        self, lengths: npt.NDArray[np.integer], sequences: npt.NDArray[np.integer]
    ) -> None:
        self._lengths.write(lengths.astype("<i4").tobytes())
        self._sequences.write(sequences.astype("<i4").tobytes())
        tokens, num_sequences, documents = self._extent
        self._extent = Extent(
            tokens + int(lengths.sum(dtype=np.int64)),
            num_sequences + lengths.size,
            documents + sequences.size,
        )

    def _write_index(self, index: BinaryIO) -> None:
        _, lengths, sequences, _ = self._parts
        _, num_sequences, num_documents = self._extent
        index.write(
            HEADER.pack(MAGIC, VERSION, CODES[self.dtype], num_sequences, num_documents + 1)
        )
        with lengths.open("rb") as file:
            copy_bytes(file, index, 4 * num_sequences)
        _write_starts(index, lengths, self.dtype.itemsize)
        end = _write_starts(index, sequences, 1)
        assert end == num_sequences, (end, num_sequences)
        index.write(struct.pack("<q", end))


def _divide(length: int) -> list[int]:
    """Return sequence lengths that int32 can hold; one, unless the document is enormous."""
    whole, rest = divmod(length, _LONGEST_SEQUENCE)
    return [_LONGEST_SEQUENCE] * whole + ([rest] if rest or not whole else [])


def _write_starts(index: BinaryIO, sizes: Path, unit: int) -> int:
    """Write where each of some int32 sizes begins, in `unit`; return where the last one ends."""
    start = 0
    with sizes.open("rb") as file:
        while block := file.read(4 * _CHUNK):
            ends = start + np.cumsum(np.frombuffer(block, "<i4"), dtype=np.int64) * unit
            starts = np.concatenate(([start], ends[:-1]))
            index.write(starts.astype("<i8").tobytes())
            start = int(ends[-1])
    return start


def _cumulative(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""  # nothing to map
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
