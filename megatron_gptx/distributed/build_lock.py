"""Extensions that DeepSpeed and PyTorch compile: a lock whose owner died holds nobody up.

PyTorch locks a folder by the existence of a file, which whoever builds there holds open. One that
is killed leaves the file, and every later process would wait for ever, silently.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.file_baton import FileBaton

_acquire = FileBaton.try_acquire


def explain_build_locks(say: Callable[[str], object]) -> None:
    """Make PyTorch's locks of this process remove those of dead owners, and say what they wait for.

    Args:
        say: takes one line.
    """

    def try_acquire(lock: Any) -> bool:
        path = Path(lock.lock_file_path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Of processes that find a dead owner's lock, one removes it and takes its place.
            fcntl.flock(folder, fcntl.LOCK_EX)
            if _abandoned(path):
                say(f"removed {path}: the process that was building there is gone")
                path.unlink()
            acquired = bool(_acquire(lock))
            if acquired:
                path.write_text(socket.gethostname())
            return acquired
        finally:
            os.close(folder)

    def wait(lock: Any) -> None:
        path = Path(lock.lock_file_path)
        say(f"waiting for the process that builds in {path.parent}; its lock is {path}")
        while path.exists():
            if _abandoned(path):
                raise RuntimeError(f"the process that was building in {path.parent} is gone")
            time.sleep(1)

    baton: Any = FileBaton
    baton.try_acquire, baton.wait = try_acquire, wait


def _abandoned(path: Path) -> bool:
    """Return whether a lock is there that its owner, of this machine and user, no longer holds."""
    try:
        if path.stat().st_uid != os.getuid():
            return False
        host = path.read_text()
    except OSError:
        return False
    return host in ("", socket.gethostname()) and not _is_open(path.resolve()) and path.exists()


def _is_open(path: Path) -> bool:
    """Return whether any process of this user holds a file open."""
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # another user's process, or one that has just ended
            for link in descriptors.iterdir():
                with suppress(OSError):  # closed since
                    if link.readlink() == path:
                        return True
    return False
