"""Signals to the launcher, and its time limit, as a request that the ranks of all nodes read."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from megatron_gptx.distributed.run_files import AT_ONCE, TIME_LIMIT, leave_marker, stop_request
from megatron_gptx.files.write import aside_of

# The alarm is the time limit's.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM)


def heeded(signum: int) -> bool:
    """Return whether a signal means this process.

    A shell makes its background jobs ignore SIGINT, and `nohup` SIGHUP: those mean other processes.
    """
    ignored = signal.getsignal(signum) == signal.SIG_IGN
    return not (ignored and signum in (signal.SIGINT, signal.SIGHUP))


class StopRequests:
    """Notes what asks a launch to end early, and passes it on once there is a run folder.

    A signal to the launcher of a node would not do: it gives ranks thirty seconds, and its runner
    gives them none.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.at_once = False
        self.run_dir: Path | None = None
        self.end_ranks: Callable[[], object] | None = None

    def __enter__(self) -> "StopRequests":
        self.previous = {
            signum: signal.signal(signum, self._note) for signum in SIGNALS if heeded(signum)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def limit(self, minutes: float | None) -> None:
        """Ask for the end after some minutes."""
        signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))

    def pass_on(self, run_dir: Path) -> None:
        """Remove the request of an earlier launch; from now on requests go to this run folder."""
        stop_request(run_dir).unlink(missing_ok=True)
        self.run_dir = run_dir

    def ask(self, reason: str) -> None:
        """Ask the ranks to end, for a reason such as a signal's name."""
        self.reasons.append(reason)
        self.at_once = self.at_once or self.reasons.count("SIGINT") > 1
        if self.run_dir is not None:
            try:
                self._write(self.run_dir)
            except OSError:  # such as a folder that is gone, where ranks could save nothing either
                self.at_once = True
        if self.at_once and self.end_ranks:
            self.end_ranks()

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.ask(TIME_LIMIT if signum == signal.SIGALRM else signal.Signals(signum).name)

    def _write(self, run_dir: Path) -> None:
        request = stop_request(run_dir)
        aside = aside_of(request)
        # On a full disk it has no words, which asks for the end as well.
        leave_marker(aside, AT_ONCE if self.at_once else self.reasons[0])
        aside.replace(request)
