"""What a person watching a run sees."""

import os
import sys
import time
from collections import deque
from typing import TextIO

from megatron_gptx.training.train_state import TrainingState

# Steps over which speed is averaged: long enough to be steady, short enough to show a change.
WINDOW = 20


class Monitor:
    """Measures speed and draws the progress line: in place on a terminal, now and then in a log."""

    def __init__(self, console: TextIO, *, total_steps: int, visible: bool) -> None:
        self.console = console
        self.total_steps = total_steps
        self.visible = visible
        self.live = visible and console.isatty()
        self.ends: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)
        self.waited_seconds = self.step_seconds = 0.0
        self.shown_at = 0.0
        self.unfinished_line = False

    def start(self, state: TrainingState) -> None:
        """Begin to measure, now or again after something that was no training."""
        self.ends.clear()
        self.ends.append((time.monotonic(), state.tokens))

    def step(self, state: TrainingState) -> tuple[float, float]:
        """Note the end of a step and return (tokens per second, seconds per step)."""
        self.ends.append((time.monotonic(), state.tokens))
        self.step_seconds += self.ends[-1][0] - self.ends[-2][0]
        (started_at, tokens_before), (ended_at, tokens_after) = self.ends[0], self.ends[-1]
        seconds = max(ended_at - started_at, 1e-9)
        return (tokens_after - tokens_before) / seconds, seconds / (len(self.ends) - 1)

    def wait(self, seconds: float) -> None:
        """Note how long a step waited for its data."""
        self.waited_seconds += seconds

    @property
    def waiting(self) -> float:
        """The share of all steps' time that they waited for data."""
        return self.waited_seconds / max(self.step_seconds, 1e-9)

    def show(self, state: TrainingState, loss: float, speed: float, step_seconds: float) -> None:
        """Draw the progress line."""
        now = time.monotonic()
        last = state.step == self.total_steps
        if not self.visible or (now - self.shown_at < (0.2 if self.live else 10.0) and not last):
            return
        self.shown_at = now
        left = duration((self.total_steps - state.step) * step_seconds)
        text = (
            f"step {state.step}/{self.total_steps}  loss {loss:.4f}  {speed:,.0f} tokens/s  "
            f"{step_seconds:.3f} s/step  {left} left"
        )
        self.console.write(f"\r\033[K{text[: self._width()]}" if self.live else f"{text}\n")
        self.console.flush()
        self.unfinished_line = self.live

    def _width(self) -> int | None:
        """Return what fits into a line of the terminal: of a longer one only the end is redrawn."""
        try:
            columns = os.get_terminal_size(self.console.fileno()).columns
        except OSError:
            return None
        # Some terminals begin a new line as soon as one is full; some do not know their width.
        return columns - 1 if columns else None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.visible:
            self.console.write(f"\n{text}\n" if self.unfinished_line else f"{text}\n")
            self.console.flush()
            self.unfinished_line = False

    def note(self, text: str) -> None:
        """Print a line that stays, and leave it in the log as well."""
        self.say(text)
        if self.visible:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
