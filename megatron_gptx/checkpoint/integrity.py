"""Whether the files of a checkpoint are those that its manifest names, byte by byte."""

from collections.abc import Iterable

from megatron_gptx.checkpoint.manifest import (
    Checkpoint,
    CheckpointError,
    printable,
    reason,
    still_there,
)
from megatron_gptx.checkpoint.names import MANIFEST, SEAL
from megatron_gptx.files.checksums import file_sha256


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
        raise CheckpointError(f"{checkpoint.path} cannot be read: {reason(error)}") from None
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
        return printable(f"{path} cannot be read: {reason(error)}")
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
        problem = f"{name!r} cannot be read: {reason(error)}"
    return printable(problem)
