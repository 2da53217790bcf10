"""Token files are written here, a document or a file of token ids at a time."""

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.manifest import (
    manifest_path,
)
from megatron_gptx.dataset.mmididx import (
    CODES,
    HEADER,
    MAGIC,
    VERSION,
    PathLike,
    bin_path,
    idx_path,
)
from megatron_gptx.files.write import copy_bytes, open_at, sync, sync_path

_LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32; a longer document becomes several sequences
_CHUNK = 1 << 20  # index entries written together: bounds memory


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


@contextmanager
def folder_of(prefix: Path) -> Iterator[Path]:
    """Hold a dataset's PREFIX.d against other runs; it is removed afterwards if nothing is in it.

    Raises:
        UserError: the prefix has no name, or another run holds it.
    """
    if prefix.name in ("", ".."):
        raise UserError(f"the output prefix '{prefix}' names no file: give it a name, data/train")
    folder = manifest_path(prefix).parent
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise UserError(f"{folder}: another run is writing this dataset") from error
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            break
        os.close(handle)  # of a folder that another run removed as it ended
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty, which is the usual case
            folder.rmdir()
        os.close(handle)
