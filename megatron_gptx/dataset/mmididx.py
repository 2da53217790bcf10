"""The layout of MMIDIDX version 1, and what must hold in every file of it.

docs/data-format.md gives the layout byte by byte.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.yaml_reader import closest

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
# Codes 6 and 7 are floats, and Megatron-LM and GPT-NeoX disagree on which is which.
DTYPES = {code: np.dtype(name) for code, name in
          {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1

_CHUNK = 1 << 20  # index entries looked at together: bounds the memory of checking

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


class Index(Protocol):
    """The entries of an .idx file; see IndexedDataset."""

    prefix: Path
    dtype: np.dtype
    num_sequences: int
    lengths: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    document_starts: npt.NDArray[np.int64]


def missing(prefix: PathLike, path: Path) -> str:
    """Return the message for a dataset that lacks a file."""
    message = f"{path}: no such file"
    if not path.is_absolute():
        message += f" in {Path.cwd()}"  # to which relative paths are relative
    if Path(prefix).suffix in (".bin", ".idx"):
        return f"{message}; give the prefix without {Path(prefix).suffix!r}"
    try:
        names = {str(found.with_suffix("")) for found in path.parent.glob("*.idx")}
    except OSError:
        names = set()
    if guess := closest(os.fspath(prefix), names - {os.fspath(prefix)}):
        return f"{message}; did you mean {guess!r}?"
    return (
        f"{message}; dataset {os.fspath(prefix)!r} needs its .bin and its .idx, which gptx "
        "preprocess makes"
    )


def read_header(path: Path, index: mmap.mmap | bytes) -> tuple[np.dtype, int, int]:
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


def check_document_starts(dataset: Index) -> None:
    """Raise a UserError unless the document index rises from 0 to the number of sequences."""
    starts, path = dataset.document_starts, idx_path(dataset.prefix)
    first, last = int(starts[0]), int(starts[-1])
    if first != 0 or last != dataset.num_sequences:
        raise UserError(
            f"{path}: the document index runs from {first} to {last} instead of from 0 to its "
            f"{dataset.num_sequences} sequences; a merge by GPT-NeoX loses it: merge the original "
            "datasets again"
        )
    for at in range(0, len(starts) - 1, _CHUNK):
        here = np.array(starts[at : at + _CHUNK + 1])
        falls = here[1:] < here[:-1]
        if falls.any():
            document = at + int(np.argmax(falls))
            raise UserError(f"{path}: damaged: document {document} ends before it begins")


def check_pointers(dataset: Index, num_bytes: int) -> bool:
    """Return whether sequences lie back to back in a .bin of this size.

    Raises:
        UserError: a sequence overlaps the next one, or the .bin ends too early or too late.
    """
    lengths, pointers, size = dataset.lengths, dataset.pointers, dataset.dtype.itemsize
    idx, tokens = idx_path(dataset.prefix), bin_path(dataset.prefix)
    contiguous, end = True, 0
    for at in range(0, dataset.num_sequences, _CHUNK):
        # Copies, since the entries are not aligned, which would slow all that follows.
        here = np.array(pointers[at : at + _CHUNK])
        ends = lengths[at : at + _CHUNK].astype(np.int64)
        none_negative = ends.min() >= 0
        ends *= size
        ends += here
        if none_negative and here[0] == end and np.array_equal(here[1:], ends[:-1]):
            end = int(ends[-1])
            continue  # back to back, as every known writer leaves them
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
