"""Where metrics go. metrics.jsonl is the record; everything else may fail without harm."""

import contextlib
import errno
import json
import math
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from megatron_gptx.config.schema import Config
from megatron_gptx.files.write import write_synced

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
        """Open a file for appending; rows after `resumed_step` belong to a future given up.

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
            with contextlib.suppress(OSError):  # of a log on a full disk
                sys.stderr.write(f"{self.name} is switched off: {type(error).__name__}: {error}\n")


class TensorBoard:
    """Event files under RUN_DIR/tensorboard."""

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        """Begin a new file; events after `resumed_step` in the others are not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, row: Row) -> None:
        """Add one scalar per metric."""
        for key, value in row.items():
            if key != "step":
                self.events.add_scalar(key, value, int(row["step"]))

    def close(self) -> None:
        """Flush the event file."""
        self.events.close()


class WeightsAndBiases:
    """One wandb run for all starts of a run; online or offline as wandb decides."""

    def __init__(self, config: Config, *, resumed_step: int) -> None:
        """Begin a run, or go on with the one whose id the run folder holds."""
        import wandb

        run_dir = Path(config.output.run_dir)
        # What is elsewhere ends no run: a wait is far shorter than what the watchdog gives.
        patience = config.launch.timeout_seconds / 4
        options: dict[str, Any] = {
            "project": config.logging.wandb_project,
            "name": config.logging.wandb_name or os.environ.get("WANDB_NAME") or run_dir.name,
            "group": config.logging.wandb_group,
            "tags": config.logging.wandb_tags or None,
            "id": _wandb_id(run_dir, resumed_step),
            "resume": "allow",
            "dir": str(run_dir),
            "config": config.model_dump(),
            "settings": wandb.Settings(init_timeout=min(90.0, patience), finish_timeout=patience),
        }
        try:
            self.run = wandb.init(**options)
        except wandb.Error as error:
            sys.stderr.write(f"wandb is offline: {error}\n")
            wandb.teardown()  # the attempt would hold on to the id
            self.run = wandb.init(**options, mode="offline")
        # wandb drops a row whose step is below an earlier one's. After going back all of them are:
        # so wandb counts rows, and the step is the axis that they are drawn over.
        self.run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        """Log one step."""
        self.run.log(dict(row))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def _wandb_id(run_dir: Path, resumed_step: int) -> str:
    """Return the id of a run's wandb run, which is a new one where nothing goes on."""
    path = run_dir / "wandb-id"
    if given := os.environ.get("WANDB_RUN_ID"):
        return given
    if resumed_step:
        with contextlib.suppress(OSError, ValueError):  # lost or damaged: a new one then
            found = path.read_text(encoding="utf-8").strip()
            if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
                return found
    name = uuid.uuid4().hex[:12]
    write_synced(path, f"{name}\n".encode())
    return name


def open_writers(
    config: Config, *, resumed_step: int, say: Callable[[str], object]
) -> list[Writer]:
    """Return the writers that a configuration asks for, the metrics file first."""
    run_dir = Path(config.output.run_dir)
    metrics = MetricsFile(run_dir / "metrics.jsonl", resumed_step=resumed_step, say=say)
    writers: list[Writer] = [metrics]
    if config.logging.tensorboard:
        folder = run_dir / "tensorboard"
        opened = partial(TensorBoard, folder, resumed_step=resumed_step)
        writers.append(Optional("TensorBoard", opened))
    if config.logging.wandb:
        writers.append(
            Optional("wandb", partial(WeightsAndBiases, config, resumed_step=resumed_step))
        )
    return writers


def _cut(path: Path, last_step: int) -> None:
    """Keep the rows up to a step; what is none, such as a torn last line, goes too."""
    content = path.read_bytes()
    lines = content.splitlines()
    steps = [_step(line) for line in lines]
    kept = b"".join(
        line + b"\n"
        for line, step in zip(lines, steps, strict=True)
        if step is not None and step <= last_step
    )
    if content.startswith(kept):
        os.truncate(path, len(kept))  # which a full disk allows too
    else:
        write_synced(path, kept)
    if strange := steps.count(None):
        sys.stderr.write(f"{path}: {strange} of {len(lines)} lines were no rows, and are gone\n")


def _step(line: bytes) -> int | None:
    """Return the step of a row, or None where a line is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None
