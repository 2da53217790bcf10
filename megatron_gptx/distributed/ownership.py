"""Whose a run folder is: while one launch or its ranks live, no other one may touch the folder."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from megatron_gptx.config.errors import UserError, why


def take_over(run_dir: Path) -> BinaryIO:
    """Return a file whose lock keeps a run folder from all other processes until it is closed.

    Raises:
        UserError: the folder belongs to another launch, or cannot be used.
    """
    try:
        file = os.fdopen(_open(run_dir), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (file.read() or b"").decode(errors="replace").strip()
            raise _in_use(run_dir, holder) from None
    except (OSError, ValueError) as error:
        raise UserError(f"output.run_dir {run_dir} cannot be used: {why(error)}") from None
    with suppress(OSError):  # a full disk: others are then not told who holds it
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n".encode())
    return file


def let_ranks_in(file: BinaryIO, run_dir: Path) -> None:
    """Share what `take_over` returned with the ranks of this launch; other launches stay out.

    Raises:
        UserError: another launch came between, for a lock is given up before it is shared.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(run_dir, "") from None


def hold_until_the_end(run_dir: Path) -> None:
    """Keep new launches out while this process lives, which may be longer than its launcher."""
    # Nobody closes it.
    fcntl.flock(_open(run_dir), fcntl.LOCK_SH)


def _open(run_dir: Path) -> int:
    """Return the descriptor of the file whose lock stands for a run folder."""
    path = run_dir / "logs" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A link would lead elsewhere, a pipe would wait for a reader.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _in_use(run_dir: Path, holder: str) -> UserError:
    by = f"another launch ({holder})" if holder else "another launch"
    return UserError(
        f"output.run_dir {run_dir} is in use by {by}, or by ranks that it left; wait for their "
        "end, or choose another folder"
    )
