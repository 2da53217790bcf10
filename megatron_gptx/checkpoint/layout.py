"""The names inside a run's checkpoint folder, and the manifest that makes a checkpoint whole.

RUN_DIR/checkpoints/latest                     name of the newest checkpoint
RUN_DIR/checkpoints/step-00000010/manifest.json
                                 /manifest.sha256     as `sha256sum -c` reads it
                                 /weights/layer-000.safetensors ...
                                 /optimizer/layer-000.rank-0000.safetensors ...
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.files import file_sha256, sync, sync_folder

FORMAT = 2
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
LATEST = "latest"
NONE = "none"  # what `latest` holds before the first checkpoint: a missing file is then a question
WEIGHTS = "weights"
OPTIMIZER = "optimizer"
PARTIAL = ".partial"

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(UserError):
    """A checkpoint that cannot be used, and why."""


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps it contains."""
        return int(self.manifest["state"]["step"])


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Return the folder that holds a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def step_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def weights_name(layer: int) -> str:
    """Return the file of one entry of the layer list."""
    return f"{WEIGHTS}/layer-{layer:03d}.safetensors"


def optimizer_name(layer: int, rank: int) -> str:
    """Return the file of what one rank holds of a layer's optimizer state."""
    return f"{OPTIMIZER}/layer-{layer:03d}.rank-{rank:04d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Return the visible checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def lock(folder: Path) -> BinaryIO:
    """Hold a run's checkpoint folder against other runs while this process lives.

    Raises:
        CheckpointError: another run holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("wb")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"{folder} is in use by another run; wait for it, or choose another output.run_dir"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be used: {error.strerror}") from None
    return handle


def newest(run_dir: str | Path) -> Checkpoint | None:
    """Return the checkpoint that `latest` names, or None where the run has saved none.

    Raises:
        CheckpointError: `latest` is missing beside checkpoints, or names something else.
    """
    folder = checkpoint_folder(run_dir)
    present = checkpoints(folder)
    pointer = folder / LATEST
    if not pointer.exists():
        if present:
            raise CheckpointError(
                f"{folder} holds {present[-1].name} but no file {LATEST!r}; write that name into "
                f"{pointer} to resume from it, or move the folder away to start afresh"
            )
        return None
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} cannot be read: {error}") from None
    if name == NONE:
        return None
    if not _NAME.fullmatch(name) or not (folder / name).is_dir():
        raise CheckpointError(
            f"{pointer} names {name!r}, which is no checkpoint in {folder}; "
            f"there are: {', '.join(path.name for path in present) or 'none'}"
        )
    return read(folder / name)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder; its manifest is read, its files are not.

    Raises:
        CheckpointError: the manifest is missing, damaged or of another format.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from None
    if isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST} has format {manifest['format']!r}, this version reads {FORMAT}"
        )
    try:
        sealed = (path / SEAL).read_bytes() == seal(content)
    except OSError as error:
        raise CheckpointError(f"{path / SEAL} cannot be read: {error.strerror}") from None
    if not sealed:
        raise CheckpointError(
            f"{path / MANIFEST} has changed since it was saved ({SEAL} does not match)"
        )
    if not _is_manifest(manifest):
        raise CheckpointError(
            f"{path / MANIFEST} is damaged: it does not hold what a checkpoint's manifest holds; "
            f"write the name of another checkpoint into {path.parent / LATEST}"
        )
    return Checkpoint(path, manifest)


def seal(manifest: bytes) -> bytes:
    """Return the content of the file beside a manifest that vouches for it."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _is_manifest(value: Any) -> bool:
    parts = ("state", "optimizer", "layout", "config", "files")
    if not isinstance(value, dict) or any(part not in value for part in parts):
        return False
    state, optimizer, layout, config, files = (value[part] for part in parts)
    return (
        all(isinstance(part, dict) for part in (state, optimizer, layout, config, files))
        and isinstance(optimizer.get("steps"), int)
        and isinstance(config.get("model"), dict)
        and "step" in state
        and all(isinstance(count, int) and count >= 0 for count in state.values())
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        )
    )


def all_names(checkpoint: Checkpoint) -> list[str]:
    """Return every file that a checkpoint has or should have, but for the manifest and its seal."""
    present = {
        str(path.relative_to(checkpoint.path))
        for path in checkpoint.path.rglob("*")
        if not path.is_dir()
    }
    return sorted((present | checkpoint.manifest["files"].keys()) - {MANIFEST, SEAL})


def damage(checkpoint: Checkpoint, names: Iterable[str]) -> str | None:
    """Return what is wrong with some of a checkpoint's files, or None where they are intact."""
    for name in names:
        try:
            if problem := _damage_of(checkpoint, name):
                return problem
        except (OSError, ValueError) as error:
            return f"{name!r} cannot be read: {error}"
    return None


def _damage_of(checkpoint: Checkpoint, name: str) -> str | None:
    path, expected = checkpoint.path / name, checkpoint.manifest["files"].get(name)
    if expected is None:
        return f"{path} is not in the manifest"
    if checkpoint.path.resolve() not in path.resolve().parents:
        return f"{name} lies outside {checkpoint.path}"
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{path} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
    if file_sha256(path) != expected["sha256"]:
        return f"{path} has changed since it was saved (its checksum differs)"
    return None


def write_synced(path: Path, content: bytes) -> None:
    """Replace a file by new content that is on disk before it is visible."""
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("wb") as file:
        file.write(content)
        sync(file)
    aside.replace(path)
    sync_folder(path.parent)
