"""Copies of complete checkpoints in another place, made while the run goes on."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from megatron_gptx.checkpoint.manifest import CheckpointError, read
from megatron_gptx.checkpoint.names import LATEST, MANIFEST, SEAL


class Upload:
    """Copies checkpoints to a URL of fsspec, one after the other, in a thread of rank 0.

    The copy of a manifest comes last, so that half a copy is no checkpoint, and `latest` after it.
    What could not be copied is tried again with the next checkpoint.
    """

    def __init__(
        self, url: str, *, say: Callable[[str], None], tokenizer: Path | None = None
    ) -> None:
        """Open the place; `say` is called by `add`, `poll` and `finish` only.

        Args:
            url: the place.
            say: takes a line for each copy.
            tokenizer: the run's folder of it, copied before the first checkpoint.

        Raises:
            CheckpointError: a package is missing, or the URL names no place.
        """
        try:
            import fsspec  # an extra
        except ImportError:
            raise CheckpointError(
                "checkpoint.upload needs the package fsspec: pip install 'megatron_gptx[data]'"
            ) from None
        try:
            self.system, self.root = fsspec.core.url_to_fs(url)
        except Exception as error:  # each file system has its own
            raise CheckpointError(
                f"checkpoint.upload: {url} cannot be used: {type(error).__name__}: {error}"
            ) from None
        self.url, self.say, self.tokenizer = url, say, tokenizer
        self.waiting: dict[Path, int] = {}  # what is to be copied, and its place in the order
        self.added = self.uploaded = 0  # places of the last one that was added, and copied
        self.told: SimpleQueue[str] = SimpleQueue()
        self.thread: Thread | None = None
        self.due = False

    def add(self, checkpoint: Path) -> None:
        """Copy a checkpoint soon."""
        self.added += 1
        self.waiting.pop(checkpoint, None)
        self.waiting[checkpoint] = self.added
        self.due = True
        self.poll()

    def poll(self) -> None:
        """Say what has been copied since, and begin with what is due."""
        while not self.told.empty():
            self.say(self.told.get())
        if self.due and not (self.thread and self.thread.is_alive()):
            self.due = False
            # A daemon: a place that does not answer keeps no run from ending.
            self.thread = Thread(target=self._copy_all, args=[dict(self.waiting)], daemon=True)
            self.thread.start()

    def finish(self, *, timeout_seconds: float) -> None:
        """Wait for what is being copied, so long at most."""
        deadline = time.monotonic() + timeout_seconds
        while self.thread and (self.due or self.thread.is_alive()) and time.monotonic() < deadline:
            self.thread.join(0.1)
            self.poll()
        self.poll()
        if self.thread and self.thread.is_alive():
            names = ", ".join(path.name for path in self.waiting)
            self.say(f"{names} not uploaded to {self.url} within {timeout_seconds:.0f} s")

    def _copy_all(self, checkpoints: dict[Path, int]) -> None:
        os.nice(19)  # of this thread
        # The newest first: older ones may be deleted before their turn comes.
        for path, number in reversed(checkpoints.items()):
            try:
                self._copy(path, number)
            except Exception as error:  # an outage elsewhere never stops a run
                again = "it is tried again with the next one" if path.exists() else "it is deleted"
                what = f"{type(error).__name__}: {error}; {again}"
                self.told.put(f"{path.name} not uploaded to {self.url}: {what}")
                if path.exists():
                    continue
            else:
                self.told.put(f"uploaded {path.name} to {self.url}")
            if self.waiting.get(path) == number:  # else it has been saved once more
                del self.waiting[path]

    def _copy(self, path: Path, number: int) -> None:
        if self.tokenizer is not None and self.tokenizer.is_dir():
            for file in (one for one in self.tokenizer.rglob("*") if one.is_file()):
                name = file.relative_to(self.tokenizer.parent).as_posix()
                self._put(file, f"{self.root}/{name}")
            self.tokenizer = None
        target = f"{self.root}/{path.name}"
        if self.system.exists(f"{target}/{MANIFEST}"):
            self.system.rm_file(f"{target}/{MANIFEST}")  # this step has been saved before
        for name in (*read(path).manifest["files"], SEAL, MANIFEST):
            self._put(path / name, f"{target}/{name}")
        if number > self.uploaded:
            self.system.pipe_file(f"{self.root}/{LATEST}", f"{path.name}\n".encode())
            self.uploaded = number

    def _put(self, file: Path, target: str) -> None:
        self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.system.put_file(str(file), target)
