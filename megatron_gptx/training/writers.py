"""Where metrics go. metrics.jsonl is the record; everything else may fail without harm."""

import contextlib
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
    """One JSON object per line and step."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Open a file for appending; rows after `resumed_step` belong to a discarded future."""
        if path.exists():
            _cut(path, resumed_step)
        self.file = path.open("a", buffering=1)

    def write(self, row: Row) -> None:
        """Append a row."""
        # JSON has no NaN and no infinity.
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.file.write(json.dumps(finite) + "\n")

    def close(self) -> None:
        """Put every row on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


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


def open_writers(config: Config, *, resumed_step: int) -> list[Writer]:
    """Return the writers that a configuration asks for, the metrics file first."""
    run_dir = Path(config.output.run_dir)
    writers: list[Writer] = [MetricsFile(run_dir / "metrics.jsonl", resumed_step=resumed_step)]
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
