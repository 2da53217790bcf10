"""Deleting checkpoints: never the newest one, never what is no checkpoint."""

import contextlib
import shutil
from pathlib import Path

from megatron_gptx.checkpoint.manifest import CheckpointError, read
from megatron_gptx.checkpoint.names import (
    LATEST,
    checkpoints,
    replaced_ones,
    step_name,
    step_of,
)
from megatron_gptx.config.training import CheckpointConfig
from megatron_gptx.files.write import PARTIAL, aside_of


def superfluous(folder: Path, *, newest: Path, options: CheckpointConfig) -> list[Path]:
    """Return the checkpoints that need not be kept, oldest first.

    Args:
        folder: the run's checkpoint folder.
        newest: the checkpoint that the run would resume from.
        options: `keep_last`, `keep_every` and `keep_steps` say what is kept besides.
    """
    if options.keep_last is None:
        return []
    # After going back to an earlier step there are later ones too: they never displace this one.
    present = checkpoints(folder)
    present = present[: present.index(newest) + 1]
    # Those that were saved amid bad steps count for none of the last ones, but for the newest.
    sound = [path for path in present if path in (newest, _sound(path))]
    last, needed = sound[-options.keep_last :], _needed(newest)
    return [
        path
        for path in present
        if path not in last and path not in needed and not _kept(step_of(path), options)
    ]


def prune(folder: Path, *, newest: Path, options: CheckpointConfig) -> list[Path]:
    """Delete what need not be kept, and return what was deleted.

    A failed delete is left to the next save.
    """
    with contextlib.suppress(OSError, ValueError):  # that somebody else deletes is no mistake
        for path in replaced_ones(folder):
            delete(path)
        found = superfluous(folder, newest=newest, options=options)
        return [path for path in found if delete(path)]
    return []


def tidy(folder: Path) -> None:
    """Remove what a killed run has left half written, and give back what it was replacing."""
    for torn in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(torn, ignore_errors=True)
    aside_of(folder / LATEST).unlink(missing_ok=True)
    for old in replaced_ones(folder):
        name = old.with_suffix("")
        if name.exists():
            delete(old)
        else:
            old.replace(name)


def delete_oldest(folder: Path, options: CheckpointConfig) -> Path | None:
    """Delete the oldest checkpoint, or return None where there is none that may be deleted.

    The one that `latest` names stays, what it goes back to, the best one, and those of `keep_every`
    and `keep_steps`.
    """
    with contextlib.suppress(OSError, ValueError):
        latest = (folder / LATEST).read_text(encoding="utf-8").strip()
        if (folder / latest).is_dir():
            needed = (folder / latest, *_needed(folder / latest))
            for path in checkpoints(folder):
                if path not in needed and not _kept(step_of(path), options) and delete(path):
                    return path
    return None


def delete(path: Path) -> bool:
    """Delete a checkpoint; return whether it is gone."""
    if path.is_symlink():
        return False  # what it leads to belongs to somebody else
    # Under its own name a half-deleted checkpoint would look like a whole one.
    hidden = path.with_name(f"{path.name}.deleted{PARTIAL}")
    try:
        shutil.rmtree(hidden, ignore_errors=True)  # of an attempt that failed
        path.replace(hidden)
        shutil.rmtree(hidden)
    except OSError:
        return False
    return True


def _needed(newest: Path) -> list[Path]:
    """Return what the newest checkpoint speaks of: the one to go back to, and the best one."""
    needed = [_sound(newest)]
    with contextlib.suppress(CheckpointError):
        if (best := read(newest).best_step) is not None:
            needed.append(newest.with_name(step_name(best)))
    return [path for path in needed if path is not None]


def _sound(path: Path) -> Path | None:
    """Return a checkpoint, or that before the bad steps which it was saved amid, if any."""
    try:
        step = read(path).sound_step
    except CheckpointError:
        return path
    return None if step is None else path.with_name(step_name(step))


def _kept(step: int, options: CheckpointConfig) -> bool:
    every = options.keep_every
    return step in options.keep_steps or (every is not None and step % every == 0)
