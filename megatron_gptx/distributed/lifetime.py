"""Processes that never outlive the one that started them."""

import ctypes
import os

_PR_SET_PDEATHSIG = 1


def end_with_parent(signum: int, *, parent: int | None = None) -> None:
    """Make the kernel send this process a signal when its parent dies, however it dies.

    Args:
        signum: the signal.
        parent: process id of the parent, where it is known: it may have died before this call.
            Otherwise a process whose parent is 1, to which orphans go, counts as orphaned.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    orphaned = os.getppid() == 1 if parent is None else os.getppid() != parent
    if orphaned:
        os.kill(os.getpid(), signum)
