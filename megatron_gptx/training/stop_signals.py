"""Ending early without losing anything: signals and requests, agreed on by all ranks."""

import os
import select
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from megatron_gptx.distributed.exit_status import FAILED, INTERRUPTED, STOPPED
from megatron_gptx.distributed.run_files import (
    AT_ONCE,
    TIME_LIMIT,
    failure_marker,
    first_to_fail,
    leave_marker,
    stop_request,
    stopped_marker,
)

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# The place of a reason is the number that ranks agree on.
REASONS = ("", *(signum.name for signum in SIGNALS), TIME_LIMIT, "logs/.stop")
POLL_SECONDS = 0.5


class Stop:
    """What asks this rank to end early: a signal to it, or the request in its run folder.

    A thread of its own listens, because a rank may spend minutes inside a collective, where no
    Python code of the main thread runs. Until `begin` is called there is nothing to save, and the
    rank leaves at once. From then on a request only sets a flag, which `agreed` shares.
    """

    def __init__(self, run_dir: Path) -> None:
        """Listen from now on; only a process's main thread may do this."""
        self.run_dir = run_dir
        self.reason = ""
        self.lock = threading.Lock()
        self.running = False
        received, told = os.pipe()
        os.set_blocking(told, False)
        # The handler in C writes the signal's number into the pipe, whatever Python is doing.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for signum in SIGNALS:
            signal.signal(signum, _nothing)
            signal.siginterrupt(signum, False)
        threading.Thread(target=self._listen, args=(received,), daemon=True).start()

    def begin(self) -> None:
        """Note that the run has something to lose: from now on it ends between two steps."""
        with self.lock:
            self.running = True

    def agreed(self, device: "torch.device", *, news: int) -> tuple[str, int]:
        """Return why all ranks end now, or an empty text, and the largest `news` of all ranks.

        Every rank calls this after a step.
        """
        import torch
        import torch.distributed as dist

        numbers = torch.tensor([REASONS.index(self.reason), news], device=device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        reason, largest_news = numbers.tolist()
        return REASONS[reason], largest_news

    def _listen(self, received: int) -> None:
        interrupts = 0
        while True:
            self._read_request()
            if not select.select([received], [], [], POLL_SECONDS)[0]:
                continue
            for signum in os.read(received, 64):
                interrupts += signum == signal.SIGINT
                if interrupts > 1:
                    os._exit(INTERRUPTED)
                if signum in SIGNALS:
                    self._ask(signal.Signals(signum).name)
                if signum == signal.SIGTERM and failure_marker(self.run_dir).exists():
                    # From the node's launcher: a peer has failed, and no step will end any more.
                    os._exit(FAILED)

    def _read_request(self) -> None:
        try:
            text = stop_request(self.run_dir).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return
        if text == AT_ONCE:
            os._exit(INTERRUPTED)
        self._ask(text if text in REASONS[1:] else "logs/.stop")

    def _ask(self, reason: str) -> None:
        with self.lock:
            if not self.running:
                self._leave(reason)
            self.reason = self.reason or reason

    def _leave(self, reason: str) -> NoReturn:
        if failure_marker(self.run_dir).exists():
            os._exit(FAILED)
        leave_marker(
            stopped_marker(self.run_dir),
            f"stopped by {reason} before a step was taken; run the same command to go on",
        )
        # A peer that misses this rank has nothing to explain.
        first_to_fail(self.run_dir, STOPPED)
        os._exit(STOPPED)


def _nothing(signum: int, frame: FrameType | None) -> None:
    """Let the thread that listens do the work: a handler has to exist for it to be told."""
