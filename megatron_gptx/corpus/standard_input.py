"""Standard input, kept on disk so that it can be divided among workers like any other file."""

import fcntl
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.open_input import InputFile

STDIN = "-"
_BLOCK = 1 << 20


@contextmanager
def spooled(folder: Path, stream: BinaryIO | None = None) -> Iterator[InputFile]:
    """Give the lines of a stream, or of standard input, as a file in `folder` while it is needed.

    Its version is the content's SHA-256: the same lines again are the same input.

    Raises:
        UserError: another run is reading into this folder, or standard input is closed.
    """
    if stream is None and sys.stdin is None:
        raise UserError("standard input is closed: pipe the lines in, or name files")
    source = stream or sys.stdin.buffer
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stdin.jsonl"
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another run is writing this dataset") from error
        try:
            file.truncate(0)  # of a run that was killed
            digest = hashlib.sha256()
            while block := source.read(_BLOCK):
                file.write(block)
                digest.update(block)
            file.flush()
            yield InputFile(str(path), file.tell(), digest.hexdigest())
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, which is the usual case
                folder.rmdir()
