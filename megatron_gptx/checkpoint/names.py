"""The names inside a run's checkpoint folder, and the manifest that makes a checkpoint whole.

RUN_DIR/checkpoints/latest                     name of the newest checkpoint
RUN_DIR/checkpoints/step-00000010/manifest.json
                                 /manifest.sha256     as `sha256sum -c` reads it
                                 /weights/layer-000.safetensors ...
                                 /optimizer/layer-000.rank-0000.safetensors ...
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from megatron_gptx.checkpoint.validity import is_manifest, is_shallow
from megatron_gptx.config.errors import UserError
from megatron_gptx.files.synced import file_sha256, sync_path

FORMAT = 4
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
LATEST = "latest"
NONE = "none"  # what `latest` holds before the first checkpoint: a missing file is then a question
WEIGHTS = "weights"
OPTIMIZER = "optimizer"
PARTIAL = ".partial"
REPLACED = ".replaced"
# A run of thousands of ranks has a manifest of tens of megabytes.
LARGEST_MANIFEST = 2**26
DEEPEST_MANIFEST = 32

_NAME = re.compile(r"step-([0-9]{8,18})")
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


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Return the folder that holds a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def step_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-").removesuffix(REPLACED))


def weights_name(layer: int) -> str:
    """Return the file of one entry of the layer list."""
    return f"{WEIGHTS}/layer-{layer:03d}.safetensors"


def optimizer_name(layer: int, rank: int) -> str:
    """Return the file of what one rank holds of a layer's optimizer state."""
    return f"{OPTIMIZER}/layer-{layer:03d}.rank-{rank:04d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Return the visible checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    # A save of the same step was killed between two renames.
    found += [path for path in replaced_ones(folder) if not path.with_suffix("").exists()]
    return sorted(found, key=step_of)


def replaced_ones(folder: Path) -> list[Path]:
    """Return the checkpoints that wait while others of their steps take their names."""
    return [
        path
        for path in folder.glob(f"step-*{REPLACED}")
        if _NAME.fullmatch(path.name.removesuffix(REPLACED)) and path.is_dir()
    ]


def printable(text: str) -> str:
    """Return a text in which nothing but its line ends acts on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def lock(folder: Path) -> BinaryIO:
    """Hold a run's checkpoint folder against other runs while this process lives.

    Raises:
        CheckpointError: another run holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A link would lead elsewhere, a pipe would wait for a reader.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.fdopen(os.open(folder / ".lock", flags, 0o644), "r+b", buffering=0)
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
        CheckpointError: `latest` is missing beside checkpoints, or names something else; or the
            manifest cannot be read.
    """
    while True:
        path = named_newest(run_dir)
        try:
            return None if path is None else read(path)
        except VanishedError:
            if named_newest(run_dir) == path:
                raise  # else the run has saved another one meanwhile


def named_newest(run_dir: str | Path) -> Path | None:
    """Return the folder that `latest` names, or None where the run has saved none.

    Raises:
        CheckpointError: `latest` is missing beside checkpoints, or names something else.
    """
    folder = checkpoint_folder(run_dir)
    while True:
        # In this order: what a run saves between the two is among those that are present.
        name, present = _named(folder), checkpoints(folder)
        if name == NONE or (name is None and not present):
            return None
        found = [path for path in present if path.name.removesuffix(REPLACED) == name]
        if found:
            return found[0]
        if _named(folder) == name:
            break  # else it has saved another one, and deleted this one
    pointer = folder / LATEST
    if name is None:
        raise CheckpointError(
            f"{folder} holds {present[-1].name} but no file {LATEST!r}; write that name into "
            f"{pointer} to resume from it, or move the folder away to start afresh"
        )
    raise CheckpointError(
        f"{pointer} names {name!r}, which is no checkpoint in {folder}; "
        f"there are: {', '.join(path.name for path in present) or 'none'}"
    )


def _named(folder: Path) -> str | None:
    """Return what `latest` holds, or None where there is no such file."""
    pointer = folder / LATEST
    try:
        return _content(pointer, limit=4096).decode().strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} cannot be read: {_reason(error)}") from None


def newest_sound(run_dir: str | Path) -> Checkpoint | None:
    """Return the newest checkpoint that was not saved amid bad steps; one that was names it.

    None where there is none.

    Raises:
        CheckpointError: it is gone, or `newest` raises.
    """
    found = newest(run_dir)
    if found is None or found.sound_step == found.step:
        return found
    step = found.sound_step
    return None if step is None else read(checkpoint_folder(run_dir) / step_name(step))


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder; its manifest is read, its files are not.

    Raises:
        CheckpointError: the manifest is missing, damaged or of another format.
    """
    try:
        content = _content(path / MANIFEST, limit=LARGEST_MANIFEST)
        manifest = json.loads(content)
        if not is_shallow(manifest, DEEPEST_MANIFEST):
            raise ValueError("it is nested too deeply")
    except (OSError, ValueError, RecursionError) as error:
        still_there(path)
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {_reason(error)}") from None
    if isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST} has format {str(manifest['format'])[:40]}, this version reads "
            f"{FORMAT}"
        )
    try:
        sealed = _content(path / SEAL, limit=4096) == seal(content)
    except OSError as error:
        still_there(path)
        raise CheckpointError(f"{path / SEAL} cannot be read: {_reason(error)}") from None
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
    if _NAME.fullmatch(path.name.removesuffix(REPLACED)) and found.step != step_of(path):
        raise CheckpointError(f"{path} holds the checkpoint of another step, {found.step}")
    return found


def still_there(path: Path) -> None:
    """Raise VanishedError where a checkpoint is gone: that is no damage."""
    if not path.is_dir():
        raise VanishedError(f"{path} is not there, or no more: a run deletes its old checkpoints")


def _content(path: Path, *, limit: int) -> bytes:
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


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def seal(manifest: bytes) -> bytes:
    """Return the content of the file beside a manifest that vouches for it."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def all_names(checkpoint: Checkpoint) -> list[str]:
    """Return every file that a checkpoint has or should have, but for the manifest and its seal.

    Raises:
        CheckpointError: its folder cannot be read, or is gone.
    """
    try:
        present = {
            str(path.relative_to(checkpoint.path))
            for path in checkpoint.path.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
    except OSError as error:
        still_there(checkpoint.path)
        raise CheckpointError(f"{checkpoint.path} cannot be read: {_reason(error)}") from None
    still_there(checkpoint.path)
    return sorted((present | checkpoint.manifest["files"].keys()) - {MANIFEST, SEAL})


def damage(checkpoint: Checkpoint, names: Iterable[str]) -> str | None:
    """Return what is wrong with some of a checkpoint's files, or None where they are intact.

    Raises:
        VanishedError: it has been deleted meanwhile.
    """
    for name in names:
        if problem := _damage_of(checkpoint, name):
            still_there(checkpoint.path)
            return problem
    return None


def _damage_of(checkpoint: Checkpoint, name: str) -> str | None:
    if problem := misfit(checkpoint, name):
        return problem
    path = checkpoint.path / name
    try:
        if file_sha256(path) != checkpoint.manifest["files"][name]["sha256"]:
            return printable(f"{path} has changed since it was saved (its checksum differs)")
    except OSError as error:
        return printable(f"{path} cannot be read: {_reason(error)}")
    return None


def misfit(checkpoint: Checkpoint, name: str) -> str | None:
    """Return what is wrong with a file as far as can be told without reading it."""
    path, expected = checkpoint.path / name, checkpoint.manifest["files"].get(name)
    try:
        if expected is None:
            problem = f"{path} is not in the manifest"
        elif checkpoint.path.resolve() not in path.resolve().parents:
            problem = f"{name} lies outside {checkpoint.path}"
        elif not path.is_file():
            problem = f"{path} is {'not a file' if path.exists() else 'missing'}"
        elif (size := path.stat().st_size) != expected["bytes"]:
            problem = f"{path} has {size} bytes, the manifest says {expected['bytes']}"
        else:
            return None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        problem = f"{name!r} cannot be read: {_reason(error)}"
    return printable(problem)


def point_to(checkpoint: Path) -> None:
    """Let `latest` name a checkpoint.

    Raises:
        CheckpointError: it cannot be written.
    """
    pointer = checkpoint.parent / LATEST
    try:
        write_synced(pointer, f"{checkpoint.name}\n".encode())
    except OSError as error:
        raise CheckpointError(f"{pointer} cannot be written: {_reason(error)}") from None


def write_synced(path: Path, content: bytes) -> None:
    """Replace a file by new content that is on disk before it is visible."""
    aside = aside_of(path)
    aside.unlink(missing_ok=True)  # not what a link in its place leads to
    aside.write_bytes(content)
    sync_path(aside)
    aside.replace(path)
    sync_path(path.parent)


def aside_of(path: Path) -> Path:
    """Return where the new content of a file is written before it takes the file's name."""
    return path.with_name(path.name + PARTIAL)


def replaced(path: Path) -> Path:
    """Return where a checkpoint waits while another one of its step takes its name."""
    return path.with_name(path.name + REPLACED)
