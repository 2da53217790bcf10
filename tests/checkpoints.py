"""Changing checkpoints, with and without the knowledge of their manifests."""

import json
import resource
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import FORMAT, Checkpoint, CheckpointError, read, seal
from megatron_gptx.checkpoint.names import step_name
from megatron_gptx.config.schema import Config
from megatron_gptx.files.checksums import file_sha256

WEIGHTS_FILE = "weights/layer-002.safetensors"
OPTIMIZER_FILE = "optimizer/layer-002.rank-0000.safetensors"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link_newest(config: Config, run_dir: Path) -> Checkpoint:
    """Return a run's newest checkpoint in another run, by links: only whole files are replaced."""
    found = newest(config.output.run_dir)
    assert found is not None
    folder = run_dir / "checkpoints" / found.path.name
    for name in [*all_names(found), "manifest.json", "manifest.sha256"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).hardlink_to(found.path / name)
    (run_dir / "checkpoints" / "latest").write_text(found.path.name)
    return read(folder)


def refusal(run_dir: Path) -> str | None:
    """Return why a run would not be resumed, by the checks that `resume` makes."""
    try:
        found = newest(run_dir)
        assert found is not None
        return damage(found, all_names(found))
    except CheckpointError as error:
        return str(error)


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_checkpoint(
    run_dir: Path,
    step: int,
    *,
    guard: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of one file, as small as the format allows."""
    folder = run_dir / "checkpoints" / step_name(step)
    (folder / "weights").mkdir(parents=True)
    file = folder / "weights" / "a.bin"
    file.write_bytes(b"the weights")
    manifest = {
        "format": FORMAT,
        "guard": guard or {},
        "best": best,
        "state": {"step": step, "samples": 8 * step, "tokens": 256 * step},
        "optimizer": {"steps": step},
        "layout": {},
        "config": {"model": {}},
        "files": {"weights/a.bin": {"bytes": 11, "sha256": file_sha256(file)}},
    }
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: Any) -> None:
    """Write a manifest and the seal that vouches for it, as new files."""
    content = json.dumps(manifest).encode()
    for name in ("manifest.json", "manifest.sha256"):
        (folder / name).unlink(missing_ok=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal(content))


def weights(run_dir: Path, *, step: int) -> dict[str, Tensor]:
    """Return the weights of a run's checkpoint, by file and name."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}" / "weights"
    return {
        f"{path.name}/{name}": tensor
        for path in folder.iterdir()
        for name, tensor in load_file(path).items()
    }


def vouch_for(folder: Path, name: str) -> None:
    """Make the manifest match a changed file, as someone would who forges a checkpoint."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / name
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_manifest(folder, manifest)
