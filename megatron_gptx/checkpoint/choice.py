"""Which checkpoint is meant: one of a run by its step, or one that a path names."""

import os
from contextlib import suppress
from pathlib import Path

from megatron_gptx.checkpoint.latest import named_newest, newest
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, read
from megatron_gptx.checkpoint.names import MANIFEST, checkpoint_folder, checkpoints, step_of

# Digits; Python itself refuses to read numbers of thousands.
_LONGEST_STEP = 100


def choose_checkpoint(run_dir: str, wanted: str | None) -> Checkpoint:
    """Return a run's newest checkpoint, or the one that `--checkpoint` names.

    Args:
        run_dir: the run folder.
        wanted: a step of that run, or the folder of any checkpoint, or of any run; null means the
            newest one of that run.

    Raises:
        CheckpointError: there is none, or its manifest cannot be read.
    """
    if wanted is None:
        found = newest(run_dir)
        if found is None:
            raise CheckpointError(
                f"{run_dir} holds no checkpoint yet (looked for in "
                f"{checkpoint_folder(run_dir).absolute()}); train first: gptx train with the same "
                "configuration"
            )
        return found
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= _LONGEST_STEP:
        return at_step(run_dir, int(wanted))
    if not os.path.isdir(wanted):  # noqa: PTH112 - pathlib raises for a name that is too long
        raise CheckpointError(
            f"--checkpoint {wanted}: no such folder; give a step, or the folder of a checkpoint"
        )
    return named(Path(wanted))


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
        raise nothing_in(path)
    return found


def nothing_in(run_dir: Path) -> CheckpointError:
    """Return what is said of a folder that is no run's, or of a run without a checkpoint."""
    found = checkpoints(run_dir)
    hint = f"; name the folder of the run, {run_dir.absolute().parent}" if found else ""
    return CheckpointError(f"{run_dir} holds no checkpoint{' of a run' if found else ''}{hint}")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path names one checkpoint, and not a run."""
    # Pathlib raises for a name that is too long.
    is_file = os.path.isfile(path / MANIFEST)  # noqa: PTH113
    return is_file or path.name.startswith("step-")


def candidates(run_dir: str | Path) -> list[Path]:
    """Return a run's checkpoints, the newest first; a future that was given up comes last."""
    present = checkpoints(checkpoint_folder(run_dir))
    try:
        last_named = named_newest(run_dir)
    except CheckpointError:
        last_named = None
    last = step_of(last_named or present[-1]) if present else 0
    return sorted(present, key=lambda path: (step_of(path) > last, -step_of(path)))


def newest_readable(run_dir: str | Path) -> Checkpoint | None:
    """Return the newest of a run's candidates whose manifest is intact, or None before any.

    Raises:
        CheckpointError: there are checkpoints, and no manifest is intact.
    """
    with suppress(CheckpointError):
        if named_newest(run_dir) is None:
            return None
    for path in candidates(run_dir):
        with suppress(CheckpointError):
            return read(path)
    raise CheckpointError(f"{checkpoint_folder(run_dir)} holds no intact checkpoint")
