"""Starting the ranks, passing signals on, and reporting how they ended."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1


def run(command: Sequence[str], *, environment: dict[str, str], folder: Path) -> int:
    """Run a command until it ends and return its exit status, 128 + N for signal N.

    SIGTERM is passed on; SIGINT reaches the whole terminal group by itself. If this process dies,
    the command is told to end.
    """
    child = subprocess.Popen(
        list(command), env=environment, cwd=folder, preexec_fn=_end_with_parent
    )

    def forward(signum: int, _: FrameType | None) -> None:
        child.send_signal(signum)

    signal.signal(signal.SIGTERM, forward)
    while True:
        try:
            status = child.wait()
            break
        except KeyboardInterrupt:
            continue
    return status_of(status)


def status_of(returncode: int) -> int:
    """Return a shell's view of a return code: DeepSpeed's launcher exits with -N for signal N."""
    if returncode < 0:
        return 128 - returncode
    return 128 + 256 - returncode if returncode > 192 else returncode


def explain(status: int, logs: Path) -> None:
    """Say what a status above 128 means; any other failure has been explained by its rank."""
    if status > 128 and status != 128 + signal.SIGINT:
        name = signal.Signals(status - 128).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        sys.stderr.write(f"error: a rank was ended by {name}{hint} (logs: {logs})\n")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
