"""One line that says how far a run is."""

import sys
import time


class Progress:
    """Share done, speeds and time left, on a terminal; nothing in a log file.

    Args:
        total_bytes: of the input.
        done_bytes: of them done by an earlier run.
    """

    def __init__(self, total_bytes: int, done_bytes: int = 0) -> None:
        self._total, self._done, self._here, self._tokens = total_bytes, done_bytes, 0, 0
        self._started_at = time.perf_counter()
        self._shown_at = 0.0
        self._width = 0

    def add(self, num_bytes: int, num_tokens: int) -> None:
        """Count what was done, and show it, ten times a second at most."""
        self._done += num_bytes
        self._here += num_bytes
        self._tokens += num_tokens
        now = time.perf_counter()
        if sys.stderr and sys.stderr.isatty() and now - self._shown_at > 0.1:
            self._shown_at = now
            self._write(self.line(now - self._started_at))

    def line(self, seconds: float) -> str:
        """Return the line after so many seconds of this run."""
        seconds = max(seconds, 1e-9)
        share = self._done / max(self._total, 1)
        speed = self._here / seconds
        left = (self._total - self._done) / speed if speed else 0.0
        minutes, rest = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{share:6.1%}  {speed / 1e6:.1f} MB/s  {self._tokens / 1e6 / seconds:.2f} M tokens/s  "
            f"{hours}:{minutes:02}:{rest:02} left"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave an empty line for whatever comes next."""
        if self._width:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text:{self._width}}")
        sys.stderr.flush()
        self._width = len(text)
