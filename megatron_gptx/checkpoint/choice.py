"""Which checkpoint is meant: one of a run by its step, or one that a path names."""

from pathlib import Path

from megatron_gptx.checkpoint.layout import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    checkpoint_folder,
    checkpoints,
    named_newest,
    newest,
    read,
    step_of,
)


def at_step(run_dir: str | Path, step: int) -> Checkpoint:
    """Return a run's checkpoint of a step.

    Raises:
        CheckpointError: there is none, or its manifest cannot be read.
    """
    folder = checkpoint_folder(run_dir)
    present = checkpoints(folder)
    for path in present:
        if step_of(path) == step:
            return read(path)
    raise CheckpointError(
        f"{folder} holds no checkpoint of step {step}; "
        f"there are: {', '.join(path.name for path in present) or 'none'}"
    )


def named(path: Path) -> Checkpoint:
    """Return the checkpoint that a path names, or a run's newest.

    Raises:
        CheckpointError: there is none, or its manifest cannot be read.
    """
    if is_checkpoint(path):
        return read(path)
    found = newest(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint")
    return found


def is_checkpoint(path: Path) -> bool:
    """Return whether a path names one checkpoint, and not a run."""
    return (path / MANIFEST).is_file() or path.name.startswith("step-")


def candidates(run_dir: str | Path) -> list[Path]:
    """Return a run's checkpoints, the newest first; a future that was given up comes last."""
    present = checkpoints(checkpoint_folder(run_dir))
    try:
        last_named = named_newest(run_dir)
    except CheckpointError:
        last_named = None
    last = step_of(last_named or present[-1]) if present else 0
    return sorted(present, key=lambda path: (step_of(path) > last, -step_of(path)))
