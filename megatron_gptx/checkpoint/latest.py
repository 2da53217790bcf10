"""Which checkpoint of a run is the newest, as its file `latest` says, and the lock on them all."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from megatron_gptx.checkpoint.manifest import (
    Checkpoint,
    CheckpointError,
    VanishedError,
    read,
    reason,
    small_file,
)
from megatron_gptx.checkpoint.names import (
    LATEST,
    NONE,
    REPLACED,
    checkpoint_folder,
    checkpoints,
    step_name,
)
from megatron_gptx.files.write import write_synced


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
        return small_file(pointer, limit=4096).decode().strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} cannot be read: {reason(error)}") from None


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


def point_to(checkpoint: Path) -> None:
    """Let `latest` name a checkpoint.

    Raises:
        CheckpointError: it cannot be written.
    """
    pointer = checkpoint.parent / LATEST
    try:
        write_synced(pointer, f"{checkpoint.name}\n".encode())
    except OSError as error:
        raise CheckpointError(f"{pointer} cannot be written: {reason(error)}") from None
