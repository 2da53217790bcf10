"""Where metrics go. metrics.jsonl is the record; everything else may fail without harm."""

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_gptx.config.schema import Config

Row = Mapping[str, float | int]


class Writer(Protocol):
    """Takes one row of metrics per step."""

    def write(self, row: Row) -> None:
        """Record a row; `step` is one of its keys."""

    def close(self) -> None:
        """Flush what is buffered."""


class MetricsFile:
    """One JSON object per line and step; rows for which the disk has no room wait until it has."""

    def __init__(self, path: Path, *, resumed_step: int, say: Callable[[str], object]) -> None:
        """Open a file for appending; rows after `resumed_step` belong to a discarded future.

        Args:
            path: the file.
            resumed_step: the last step whose row is kept.
            say: takes a line when the disk is full.
        """
        if path.exists():
            _cut(path, resumed_step)
        self.path, self.say = path, say
        self.file = path.open("ab", buffering=0)
        self.waiting: list[bytes] = []
        self.full = False

    def write(self, row: Row) -> None:
        """Append a row."""
        # JSON has no NaN and no infinity.
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.waiting.append(json.dumps(finite).encode() + b"\n")
        self._append()

    def close(self) -> None:
        """Put every row on disk."""
        self._append()
        if self.waiting:
            self.say(f"{self.path} lacks its last {len(self.waiting)} rows: no space left")
        os.fsync(self.file.fileno())
        self.file.close()

    def _append(self) -> None:
        """Write what waits, all of it or nothing."""
        rows = memoryview(b"".join(self.waiting))
        size = os.fstat(self.file.fileno()).st_size
        try:
            while rows:
                rows = rows[self.file.write(rows) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.file.truncate(size)
            if not self.full:
                self.say(f"no space left for {self.path}: its rows wait until there is")
            self.full = True
        else:
            if self.full:
                self.say(f"{self.path} has all its rows again")
            self.waiting, self.full = [], False


class Optional:
    """A writer that is dropped at its first error: an outage elsewhere never stops a run."""

    def __init__(self, name: str, open_writer: Callable[[], Writer]) -> None:
        self.name = name
        self.writer: Writer | None = None
        with self._dropped_on_error():
            self.writer = open_writer()

    def write(self, row: Row) -> None:
        """Record a row if the writer still works."""
        with self._dropped_on_error():
            if self.writer:
                self.writer.write(row)

    def close(self) -> None:
        """Flush if the writer still works."""
        with self._dropped_on_error():
            if self.writer:
                self.writer.close()

    @contextlib.contextmanager
    def _dropped_on_error(self) -> Any:
        try:
            yield
        except Exception as error:
            self.writer = None
            sys.stderr.write(f"{self.name} is switched off: {type(error).__name__}: {error}\n")


class TensorBoard:
    """Event files under RUN_DIR/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        """Add one scalar per metric."""
        for key, value in row.items():
            if key != "step":
                self.events.add_scalar(key, value, int(row["step"]))

    def close(self) -> None:
        """Flush the event file."""
        self.events.close()


class WeightsAndBiases:
    """A wandb run; offline where no key is set."""

    def __init__(self, config: Config) -> None:
        import wandb

        online = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE")
        self.run = wandb.init(
            project=config.logging.wandb_project,
            dir=config.output.run_dir,
            config=config.model_dump(),
            mode=None if online else "offline",
        )

    def write(self, row: Row) -> None:
        """Log one step."""
        self.run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def open_writers(
    config: Config, *, resumed_step: int, say: Callable[[str], object]
) -> list[Writer]:
    """Return the writers that a configuration asks for, the metrics file first."""
    run_dir = Path(config.output.run_dir)
    metrics = MetricsFile(run_dir / "metrics.jsonl", resumed_step=resumed_step, say=say)
    writers: list[Writer] = [metrics]
    if config.logging.tensorboard:
        writers.append(Optional("TensorBoard", lambda: TensorBoard(run_dir / "tensorboard")))
    if config.logging.wandb:
        writers.append(Optional("wandb", lambda: WeightsAndBiases(config)))
    return writers


def _cut(path: Path, last_step: int) -> None:
    """Keep the rows up to a step; a torn last line goes too."""
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    aside = path.with_name(path.name + ".partial")
    aside.write_text("".join(kept))
    aside.replace(path)
