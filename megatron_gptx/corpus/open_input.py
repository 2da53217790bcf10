"""Inputs opened as bytes, wherever they lie and however they are compressed."""

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import zstandard

from megatron_gptx.config.errors import UserError

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
# What reading a compressed file raises when it is damaged, besides OSError.
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError)
_BLOCK = 1 << 18  # read at once: the default of 8 KiB makes long lines slow
_MAGIC = {
    ".gz": (b"\x1f\x8b\x08",),
    ".zst": (b"\x28\xb5\x2f\xfd",),
    ".xz": (b"\xfd7zXZ\0",),
    ".bz2": tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)),
}
_MAGIC_BYTES = 10

Kind = Literal["files", "lines", "stream", "json", "parquet", "dataset"]


class InputFile(NamedTuple):
    """An input as its user named it, with what tells whether it has changed since.

    `kind` is how it is read; null leaves that to whoever divides it.
    """

    path: str
    num_bytes: int
    version: str
    kind: Kind | None = None


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL."""
    return "://" in path


def stat_input(path: str) -> InputFile:
    """Return size and version of an input.

    Raises:
        OSError: it is not there, or not a file.
        UserError: it is remote, and the package or the permission for that is missing.
    """
    if is_remote(path):
        info = _remote(path, lambda system, inside: system.info(inside))
        known = (info.get(name) for name in ("ETag", "LastModified", "last_modified", "mtime"))
        version = next((str(value) for value in known if value), "")
        return InputFile(path, info.get("size") or 0, version)
    status = os.stat(path)  # noqa: PTH116 - there may be a million of them
    if not stat.S_ISREG(status.st_mode):
        # A pipe would wait for a writer, and could be read only once.
        raise OSError("not a file; pipe it in and name - as input")
    return InputFile(path, status.st_size, str(status.st_mtime_ns))


def open_input(path: str) -> BinaryIO:
    """Open an input; what is compressed is decompressed as it is read.

    Raises:
        OSError, UserError: as in `stat_input`.
    """
    if is_remote(path):
        raw = cast(BinaryIO, _remote(path, lambda system, inside: system.open(inside, "rb")))
    else:
        stat_input(path)
        raw = Path(path).open("rb", _BLOCK)  # noqa: SIM115 - the caller closes it
    how = _compression(path, None if is_remote(path) else raw.fileno())
    if how == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if how == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if how == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if how == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(raw), _BLOCK))
    return raw


def is_compressed(path: str) -> bool:
    """Tell whether an input is compressed: a URL by its name, a file by what it begins with.

    A file that begins like none of them is what its name says: it may be damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    if is_remote(path):
        return _compression(path, None) is not None
    stat_input(path)
    with Path(path).open("rb", 0) as raw:
        return _compression(path, raw.fileno()) is not None


def _compression(path: str, handle: int | None) -> str | None:
    begin = b"" if handle is None else os.pread(handle, _MAGIC_BYTES, 0)
    by_content = (ending for ending, magic in _MAGIC.items() if begin.startswith(magic))
    by_name = (ending for ending in COMPRESSED if path.lower().endswith(ending))
    return next(by_content, None) or next(by_name, None)


def remote_names(path: str) -> list[str]:
    """Return the URLs that a URL with wildcards stands for, sorted."""
    return _remote(
        path,
        lambda system, inside: sorted(map(system.unstrip_protocol, system.glob(inside))),
    )


def _remote(url: str, use: Any) -> Any:
    """Return what `use` makes of a URL's file system and path; all failures are UserErrors."""
    try:
        import fsspec  # an extra
    except ImportError as error:
        raise UserError(
            f"{url}: needs the package fsspec: pip install 'megatron_gptx[data]'"
        ) from error
    try:
        return use(*fsspec.core.url_to_fs(url))
    except Exception as error:  # each file system has its own
        raise UserError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error


class _ZstdStream(io.RawIOBase):
    """The content of a .zst file; the library's own reader takes a cut one for a whole one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside = False  # a frame that has begun and not ended
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            unused = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._inside = False
            if not (block := unused or self._raw.read(_BLOCK)):
                if self._inside:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._inside = True
            self._ready = memoryview(self._frame.decompress(block))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()
