"""Token files on disk: MMIDIDX version 1, which Megatron-LM and GPT-NeoX read and write.

A dataset is two files, PREFIX.bin (token ids, back to back) and PREFIX.idx. docs/data-format.md
gives the layout byte by byte. Nothing of ours is ever added to either file.
"""

import mmap
import os
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
# Codes 6 and 7 are floats, and Megatron-LM and GPT-NeoX disagree on which is which.
DTYPES = {code: np.dtype(name) for code, name in
          {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1

_LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32; a longer document becomes several sequences
_CHUNK = 1 << 20  # index entries looked at together: bounds the memory of checking and writing

PathLike = str | os.PathLike[str]


def bin_path(prefix: PathLike) -> Path:
    """Return the path of the token ids; a prefix may itself contain dots."""
    return Path(f"{os.fspath(prefix)}.bin")


def idx_path(prefix: PathLike) -> Path:
    """Return the path of the index."""
    return Path(f"{os.fspath(prefix)}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type that all readers share: uint16 below 65,536 ids, else int32."""
    return np.dtype("<u2") if vocab_size < 65536 else np.dtype("<i4")


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
                raise UserError(_missing(prefix, path))
        index = _map(idx_path(prefix))
        self.dtype, self.num_sequences, num_starts = _read_header(idx_path(prefix), index)
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
        _check_document_starts(self)
        contiguous = _check_pointers(self, len(tokens))
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

    def windows(self, length: int) -> npt.NDArray[np.integer] | None:
        """Return a (num_tokens - length + 1, length) view whose row i begins at token i.

        None where the tokens do not lie back to back, or are fewer than `length`.
        """
        if self._offsets is not None or self.num_tokens < length:
            return None
        return np.lib.stride_tricks.sliding_window_view(self._tokens, length)


class IndexedDatasetWriter:
    """Writes a dataset that becomes visible all at once.

    Both files grow under other names and are renamed when whole, the .bin first: wherever the .idx
    can be seen, the dataset is complete. As a context manager it finalises, or on an exception
    leaves nothing behind.

    Args:
        prefix: the dataset's prefix; its folder must exist.
        dtype: one of DTYPES' values; see `token_dtype`.
        folder: where the files grow, on the same file system; null means beside the prefix.
    """

    def __init__(
        self, prefix: PathLike, dtype: npt.DTypeLike, *, folder: Path | None = None
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in CODES, f"{dtype} has no code that all readers share"
        self.num_tokens = 0
        self._lengths = array("i")  # tokens per sequence
        self._sequences = array("i")  # sequences per document
        stem = (folder or self.prefix.parent) / f".{self.prefix.name}.{os.getpid()}-{id(self):x}"
        self._bin_part, self._idx_part = bin_path(stem), idx_path(stem)
        self._bin: BinaryIO = self._bin_part.open("xb")

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
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._sequences)

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
        self._lengths.extend(sequence_lengths)
        self._sequences.append(len(sequence_lengths))
        self.num_tokens += ids.size

    def append_file(self, path: Path, document_lengths: npt.NDArray[np.int64]) -> None:
        """Append a file of token ids in this writer's dtype that holds documents back to back."""
        num_tokens = int(document_lengths.sum())
        found = path.stat().st_size
        assert found == num_tokens * self.dtype.itemsize, f"{path}: {found} bytes, {num_tokens} ids"
        with path.open("rb") as part:
            while block := part.read(1 << 22):
                self._bin.write(block)
        if document_lengths.size and document_lengths.max() > _LONGEST_SEQUENCE:
            for length in document_lengths.tolist():
                pieces = _divide(length)
                self._lengths.extend(pieces)
                self._sequences.append(len(pieces))
        else:
            self._lengths.frombytes(document_lengths.astype(np.intc).tobytes())
            self._sequences.frombytes(np.ones(document_lengths.size, np.intc).tobytes())
        self.num_tokens += num_tokens

    def finalize(self) -> None:
        """Write the index and give both files their names; an existing dataset is replaced."""
        try:
            with self._idx_part.open("xb") as index:
                self._write_index(index)
                _sync(index)
            _sync(self._bin)
            self._bin.close()
            # An old index must not be seen with new tokens.
            idx_path(self.prefix).unlink(missing_ok=True)
            self._bin_part.replace(bin_path(self.prefix))
            self._idx_part.replace(idx_path(self.prefix))
            sync_folder(self.prefix.parent)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written; the dataset's own names were never touched."""
        try:
            self._bin.close()  # flushes, which a full disk refuses
        except OSError:
            pass
        finally:
            self._bin_part.unlink(missing_ok=True)
            self._idx_part.unlink(missing_ok=True)

    def _write_index(self, index: BinaryIO) -> None:
        lengths = np.frombuffer(self._lengths, np.intc)
        sequences = np.frombuffer(self._sequences, np.intc)
        num_starts = self.num_documents + 1
        index.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], len(lengths), num_starts))
        index.write(lengths.astype("<i4", copy=False).tobytes())
        _write_starts(index, lengths, self.dtype.itemsize)
        end = _write_starts(index, sequences, 1)
        index.write(struct.pack("<q", end))


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _divide(length: int) -> list[int]:
    """Return sequence lengths that int32 can hold; one, unless the document is enormous."""
    whole, rest = divmod(length, _LONGEST_SEQUENCE)
    return [_LONGEST_SEQUENCE] * whole + ([rest] if rest or not whole else [])


def _write_starts(index: BinaryIO, sizes: npt.NDArray[np.intc], unit: int) -> int:
    """Write where each of these begins, counted in `unit`; return where the last one ends."""
    start = 0
    for at in range(0, len(sizes), _CHUNK):
        ends = start + np.cumsum(sizes[at : at + _CHUNK], dtype=np.int64) * unit
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


def _missing(prefix: PathLike, path: Path) -> str:
    message = f"{path}: no such file; dataset {os.fspath(prefix)!r} needs its .bin and its .idx"
    if Path(prefix).suffix in (".bin", ".idx"):
        return f"{message}; give the prefix without {Path(prefix).suffix!r}"
    return f"{message}, which tools/preprocess_data.py makes"


def _read_header(path: Path, index: mmap.mmap | bytes) -> tuple[np.dtype, int, int]:
    """Return dtype, sequence count and length of the document index, each found plausible."""
    if len(index) < HEADER.size:
        raise UserError(
            f"{path}: truncated: {len(index)} bytes, the header alone has {HEADER.size}"
        )
    magic, version, code, num_sequences, num_starts = HEADER.unpack_from(index)
    if magic != MAGIC:
        raise UserError(f"{path}: not an MMIDIDX index: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise UserError(f"{path}: MMIDIDX version {version}; only version {VERSION} is known")
    if code not in DTYPES:
        raise UserError(f"{path}: dtype code {code} is none of the integer codes {sorted(DTYPES)}")
    if num_starts < 1:
        raise UserError(f"{path}: its document index is empty; it needs at least one entry")
    expected = HEADER.size + 12 * num_sequences + 8 * num_starts
    # Multimodal files end with one byte of mode per sequence, which text does not need.
    if len(index) not in (expected, expected + num_sequences):
        raise UserError(
            f"{path}: {'truncated' if len(index) < expected else 'too long'}: {len(index)} bytes, "
            f"but {num_sequences} sequences and {num_starts} document entries take {expected}"
        )
    return DTYPES[code], num_sequences, num_starts


def _check_document_starts(dataset: IndexedDataset) -> None:
    starts, path = dataset.document_starts, idx_path(dataset.prefix)
    first, last = int(starts[0]), int(starts[-1])
    if first != 0 or last != dataset.num_sequences:
        raise UserError(
            f"{path}: the document index runs from {first} to {last} instead of from 0 to its "
            f"{dataset.num_sequences} sequences; a merge by GPT-NeoX loses it: merge the original "
            "datasets again"
        )
    for at in range(0, len(starts) - 1, _CHUNK):
        steps = np.diff(starts[at : at + _CHUNK + 1])
        if (steps < 0).any():
            document = at + int(np.argmax(steps < 0))
            raise UserError(f"{path}: damaged: document {document} ends before it begins")


def _check_pointers(dataset: IndexedDataset, num_bytes: int) -> bool:
    """Return whether sequences lie back to back in a .bin of this size.

    Raises:
        UserError: a sequence overlaps the next one, or the .bin ends too early or too late.
    """
    lengths, pointers, size = dataset.lengths, dataset.pointers, dataset.dtype.itemsize
    idx, tokens = idx_path(dataset.prefix), bin_path(dataset.prefix)
    contiguous, end = True, 0
    for at in range(0, dataset.num_sequences, _CHUNK):
        here = pointers[at : at + _CHUNK]
        ends = here + lengths[at : at + _CHUNK].astype(np.int64) * size
        gaps = here - np.concatenate(([end], ends[:-1]))
        bad = (gaps < 0) | (ends < here) | (here % size != 0)
        if bad.any():
            worst = int(np.argmax(bad))
            raise UserError(
                f"{idx}: damaged: sequence {at + worst} has {lengths[at + worst]} tokens from byte "
                f"{here[worst]}, which overlaps its neighbour or is not a multiple of {size}"
            )
        contiguous &= not gaps.any()
        end = int(ends[-1])
    if num_bytes != end:
        what = "truncated" if num_bytes < end else "too long"
        raise UserError(
            f"{tokens}: {what}: {num_bytes} bytes, but {idx.name} describes {end}; the two files "
            "do not belong together, or a copy was cut short: copy or preprocess again"
        )
    return contiguous
