"""The manifest that makes a checkpoint whole. Anybody may have written the file it comes from."""

import errno
import hashlib
import json
import math
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.checkpoint.names import (
    LATEST,
    MANIFEST,
    OPTIMIZER,
    SEAL,
    WEIGHTS,
    is_step,
    step_of,
)
from megatron_gptx.config.errors import UserError

FORMAT = 4
COUNTERS = {"step", "samples", "tokens"}
# A run of thousands of ranks has a manifest of tens of megabytes.
LARGEST_MANIFEST = 2**26
DEEPEST_MANIFEST = 32

_FILE = re.compile(rf"(?:{WEIGHTS}|{OPTIMIZER})/[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,199}}")


class CheckpointError(UserError):
    """A checkpoint that cannot be used, and why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class VanishedError(CheckpointError):
    """A checkpoint that is not there any more: its run has newer ones, and keeps so many."""


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps it contains."""
        return int(self.manifest["state"]["step"])

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint of its run until then, if it keeps that."""
        best = self.manifest.get("best")
        return None if best is None else int(best["step"])

    @property
    def sound_step(self) -> int | None:
        """Its own step; if saved amid bad steps, that of the checkpoint before them, if any."""
        guard = self.manifest["guard"]
        return guard.get("return_to") if guard.get("in_a_row") else self.step


def printable(text: str) -> str:
    """Return a text in which nothing but its line ends acts on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder; its manifest is read, its files are not.

    Raises:
        CheckpointError: the manifest is missing, damaged or of another format.
    """
    try:
        content = small_file(path / MANIFEST, limit=LARGEST_MANIFEST)
        manifest = json.loads(content)
        if not is_shallow(manifest, DEEPEST_MANIFEST):
            raise ValueError("it is nested too deeply")
    except (OSError, ValueError, RecursionError) as error:
        still_there(path)
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {reason(error)}") from None
    if isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST} has format {str(manifest['format'])[:40]}, this version reads "
            f"{FORMAT}"
        )
    try:
        sealed = small_file(path / SEAL, limit=4096) == seal(content)
    except OSError as error:
        still_there(path)
        raise CheckpointError(f"{path / SEAL} cannot be read: {reason(error)}") from None
    if not sealed:
        raise CheckpointError(
            f"{path / MANIFEST} has changed since it was saved ({SEAL} does not match)"
        )
    if not is_manifest(manifest) or not all(map(_FILE.fullmatch, manifest["files"])):
        raise CheckpointError(
            f"{path / MANIFEST} is damaged: it does not hold what a checkpoint's manifest holds; "
            f"write the name of another checkpoint into {path.parent / LATEST}"
        )
    found = Checkpoint(path, manifest)
    if is_step(path) and found.step != step_of(path):
        raise CheckpointError(f"{path} holds the checkpoint of another step, {found.step}")
    return found


def still_there(path: Path) -> None:
    """Raise VanishedError where a checkpoint is gone: that is no damage."""
    if not path.is_dir():
        raise VanishedError(f"{path} is not there, or no more: a run deletes its old checkpoints")


def small_file(path: Path, *, limit: int) -> bytes:
    """Return what a small file holds; links are not followed, pipes and devices not opened.

    Raises:
        OSError: it is no file, or larger than `limit` bytes.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes")
    return content


def reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def seal(manifest: bytes) -> bytes:
    """Return the content of the file beside a manifest that vouches for it."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def is_manifest(value: Any) -> bool:
    """Return whether a value from a file has the shape of a manifest, its files' names apart."""
    parts = ("state", "optimizer", "layout", "config", "files")
    if not isinstance(value, dict) or any(not isinstance(value.get(p), dict) for p in parts):
        return False
    state, optimizer, config, files = (value[p] for p in parts if p != "layout")
    scale = optimizer.get("loss_scale") or {}
    guard = value.get("guard")
    return (
        state.keys() == COUNTERS
        and all(_is_count(count) for count in (*state.values(), optimizer.get("steps")))
        and isinstance(scale, dict)
        and all(isinstance(s, int | float) and math.isfinite(s) for s in scale.values())
        and isinstance(guard, dict)
        and all(_is_count(guard.get(name, 0)) for name in ("bad_steps", "in_a_row", "rewinds"))
        and (guard.get("return_to") is None or _is_count(guard["return_to"]))
        and isinstance(guard.get("save_is_due", False), bool)
        and isinstance(losses := guard.get("losses", []), list)
        and all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
        and _is_best(value.get("best"))
        and isinstance(value.get("data", {}), dict | None)
        and isinstance(config.get("model"), dict)
        and all(
            isinstance(entry, dict)
            and _is_count(entry.get("bytes"))
            and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        )
    )


def _is_best(value: Any) -> bool:
    """Return whether this names the best checkpoint, if any, by its step and validation loss."""
    if value is None:
        return True
    loss = value.get("valid_loss") if isinstance(value, dict) else None
    return isinstance(loss, float) and math.isfinite(loss) and _is_count(value.get("step"))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def is_shallow(value: Any, levels: int) -> bool:
    """Return whether no value lies more than so many levels deep: what follows recurses."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(is_shallow(inner, levels - 1) for inner in value)
