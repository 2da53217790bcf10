"""Where a rank's words go: its own log file, and the console for the few that matter to people."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from megatron_gptx.distributed.exit_status import MISTAKE


class _Lossy(io.RawIOBase):
    """Writes to a descriptor as long as somebody takes it, and drops what nobody does."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.problem: OSError | None = None  # why something was dropped

    def writable(self) -> bool:
        """Return that this is a stream to write to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Return whether a terminal shows what is written."""
        return os.isatty(self.descriptor)

    def write(self, content: Any) -> int:
        """Write some bytes, or lose them, and return how many."""
        try:
            return os.write(self.descriptor, content)
        except OSError as error:  # the reader or the terminal is gone, the disk is full
            self.problem = error
            return memoryview(content).nbytes


def lossy(descriptor: int) -> TextIO:
    """Return a stream for words to people, which no run may depend on: writing never fails."""
    return _text(_Lossy(descriptor))


def _text(raw: _Lossy) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)


@contextlib.contextmanager
def lossy_output() -> Iterator[_Lossy]:
    """Let this process go on without those who read its stdout, which is yielded, and stderr."""
    before = sys.stdout, sys.stderr
    _flush()
    output = _Lossy(1)
    sys.stdout = _text(output)
    if sys.stderr is not None:  # where it was closed, another file may have its number
        sys.stderr = lossy(2)
    try:
        yield output
    finally:
        _flush()
        sys.stdout, sys.stderr = before


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def run_program(work: Callable[[], int]) -> int:
    """Return the status of a program, which goes on where those who read its output have gone.

    That a reader leaves (`| head`) is no mistake; a full disk is one, for the output is wanted.
    """
    if sys.stdout is None:  # it was closed before the program began
        return work()
    with lossy_output() as output:
        status = work()
        sys.stdout.flush()
        if output.problem is None or isinstance(output.problem, BrokenPipeError):
            return status
        if sys.stderr is not None:
            sys.stderr.write(f"the output cannot be written: {output.problem.strerror}\n")
        return status or MISTAKE


def redirect_output(path: Path) -> TextIO:
    """Send this process's stdout and stderr, libraries' included, to the end of a file.

    Returns:
        What stdout was before: the stream that people see.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    console = lossy(os.dup(1))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = lossy(1), lossy(2)
    return console
