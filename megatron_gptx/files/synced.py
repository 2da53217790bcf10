"""Bytes on disk: copied by the kernel, synced, replaced all at once, fingerprinted."""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from megatron_gptx.config.errors import UserError

CHECKSUM_BLOCK = 1 << 26  # bytes per checksum: one names where a file is damaged


def copy_bytes(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    """Copy from one file's position to the other's end; the kernel does it where it can."""
    target.flush()
    left = num_bytes
    try:
        while left and (
            copied := os.copy_file_range(
                source.fileno(), target.fileno(), left, source.tell() + num_bytes - left
            )
        ):
            left -= copied
    except AttributeError:  # another system than Linux
        pass
    except OSError as error:
        # Between file systems, or on one that cannot; anything else will happen again below.
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    target.seek(0, os.SEEK_END)  # the kernel moved on without telling the file object
    source.seek(num_bytes - left, os.SEEK_CUR)
    while left and (block := source.read(min(left, 1 << 22))):
        target.write(block)
        left -= len(block)
    if left:
        raise OSError(errno.EIO, f"ends {left} bytes too early", source.name)


def open_at(path: Path, size: int) -> BinaryIO:
    """Open a file for more, cut back to `size` bytes.

    Raises:
        UserError: it is smaller than that.
    """
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise UserError(f"{path}: {found} bytes are left of the {size} that were written")
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def sync_path(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(file: BinaryIO) -> None:
    """Make what was written to a file survive a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def write_aside(path: Path, content: str) -> None:
    """Give a text file its new content all at once, or leave it as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksums(path: Path, *, threads: int = 1) -> list[str]:
    """Return the SHA-256 of each block of CHECKSUM_BLOCK bytes of a file."""

    def block_sha256(start: int) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(start)
            left = CHECKSUM_BLOCK
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(block_sha256, range(0, path.stat().st_size, CHECKSUM_BLOCK)))
