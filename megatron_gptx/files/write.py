"""Bytes on disk: copied by the kernel, synced, and files that change all at once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from megatron_gptx.config.errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is being written


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


def write_synced(path: Path, content: bytes | str) -> None:
    """Replace a file all at once by new content, which is on disk before it is visible.

    Where that fails, the file is as it was, and nothing is left beside it.
    """
    with _aside(path, content) as aside:
        sync_path(aside)
        aside.replace(path)
    sync_path(path.parent)


def write_aside(path: Path, content: bytes | str) -> None:
    """Replace a file all at once, as `write_synced` does; a crash of the machine may lose it."""
    with _aside(path, content) as aside:
        aside.replace(path)


def aside_of(path: Path) -> Path:
    """Return where the new content of a file is written before it takes the file's name."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def _aside(path: Path, content: bytes | str) -> Iterator[Path]:
    aside = aside_of(path)
    aside.unlink(missing_ok=True)  # not what a link in its place leads to
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        yield aside
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
