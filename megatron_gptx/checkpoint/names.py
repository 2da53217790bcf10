"""The names inside a run's checkpoint folder.

RUN_DIR/checkpoints/latest                     name of the newest checkpoint
RUN_DIR/checkpoints/step-00000010/manifest.json
                                 /manifest.sha256     as `sha256sum -c` reads it
                                 /weights/layer-000.safetensors ...
                                 /optimizer/layer-000.rank-0000.safetensors ...
"""

import re
from pathlib import Path

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
LATEST = "latest"
NONE = "none"  # what `latest` holds before the first checkpoint: a missing file is then a question
WEIGHTS = "weights"
OPTIMIZER = "optimizer"
REPLACED = ".replaced"

_NAME = re.compile(r"step-([0-9]{8,18})")


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Return the folder that holds a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def step_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def is_step(path: Path) -> bool:
    """Return whether a folder is named as the checkpoint of a step."""
    return _NAME.fullmatch(path.name.removesuffix(REPLACED)) is not None


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
    return [path for path in folder.glob(f"step-*{REPLACED}") if is_step(path) and path.is_dir()]


def replaced(path: Path) -> Path:
    """Return where a checkpoint waits while another one of its step takes its name."""
    return path.with_name(path.name + REPLACED)
