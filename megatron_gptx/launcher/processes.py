"""Starting processes, passing signals on, and reporting how they ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from megatron_gptx.distributed.exit_status import FAILED
from megatron_gptx.distributed.lifetime import end_with_parent
from megatron_gptx.launcher.stop_requests import StopRequests, heeded

# How long the launchers of nodes may take to end all ranks once one has failed: they give those
# that do not answer half a minute.
AFTER_FAILURE_SECONDS = 45


def run(command: Sequence[str], *, environment: dict[str, str], folder: Path) -> int:
    """Run a command until it ends and return its exit status, 128 + N for signal N.

    SIGINT and SIGTERM end the command, and the status then says so. If this process dies, the
    command is told to end.
    """
    parent = os.getpid()
    received: list[int] = []

    def prepare() -> None:
        # A terminal sends SIGINT to every process in it, and Python answers with a traceback each.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent(signal.SIGTERM, parent=parent)

    def end(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        child.terminate()

    child = subprocess.Popen(list(command), env=environment, cwd=folder, preexec_fn=prepare)
    previous = {
        signum: signal.signal(signum, end)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if heeded(signum)
    }
    try:
        status = child.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return 128 + received[0] if received and status else status_of(status)


def run_ranks(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    folder: Path,
    requests: StopRequests,
    last_signal: signal.Signals,
    patience_seconds: float,
    failure: Path | None = None,
) -> int:
    """Run the launcher of a node, or DeepSpeed's runner, until it ends and return its exit status.

    Args:
        command: the launcher and its arguments.
        environment: its variables.
        folder: where it runs.
        requests: what ends the run early; in a hurry it ends all processes here.
        last_signal: what the processes get that outlive their launcher, or are to end at once.
        patience_seconds: how long those that outlive it may take to stop by themselves.
        failure: a file that the first rank that fails leaves; then the launcher has to end soon.
    """
    parent = os.getpid()

    def prepare() -> None:
        # In a group of their own: Ctrl-C in a terminal is for this process, which passes it on.
        os.setpgid(0, 0)
        # No launcher of a node answers them, and they may be sent to every process.
        for signum in (signal.SIGUSR1, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        end_with_parent(signal.SIGTERM, parent=parent)

    child = subprocess.Popen(list(command), env=environment, cwd=folder, preexec_fn=prepare)
    requests.end_ranks = lambda: _signal_group(child.pid, last_signal)
    status = status_of(child.wait() if failure is None else _wait_for(child, failure))
    requests.end_ranks = None
    deadline = time.monotonic() + patience_seconds
    if _signal_group(child.pid, 0) and patience_seconds:
        requests.ask("SIGTERM")
        while _signal_group(child.pid, 0) and time.monotonic() < deadline:
            time.sleep(0.2)
    _signal_group(child.pid, last_signal)
    return status


def _wait_for(child: subprocess.Popen[bytes], failure: Path) -> int:
    """Return how a process ended, which is ended where it goes on for long after a failure.

    What holds the processes of other hosts may wait for one that is out of reach, for ever.
    """
    # Asked to end, DeepSpeed's runner ends the ranks of all hosts that it reaches.
    left = [child.terminate, lambda: _signal_group(child.pid, signal.SIGKILL)]
    deadline = None
    while True:
        try:
            status = child.wait(timeout=1)
            return status if len(left) > 1 else FAILED
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if deadline is None and failure.exists():
                deadline = now + AFTER_FAILURE_SECONDS
            elif deadline is not None and now > deadline and left:
                left.pop(0)()
                deadline = now + AFTER_FAILURE_SECONDS


def _signal_group(group: int, signum: int) -> bool:
    """Send a signal to a process group and return whether there is a process in it."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    return True


def status_of(returncode: int) -> int:
    """Return a shell's view of a return code: the launcher of a node exits with -N for signal N."""
    if returncode < 0:
        return 128 - returncode
    return 128 + 256 - returncode if returncode > 192 else returncode


def explain(status: int, logs: Path | None = None) -> None:
    """Say what a status above 128 means; any other failure has been explained by its process."""
    if status <= 128 or status == 128 + signal.SIGINT:
        return
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        name = f"signal {status - 128}"
    hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    where = f" (logs: {logs})" if logs else ""
    sys.stderr.write(f"error: a process of this run was ended by {name}{hint}{where}\n")
