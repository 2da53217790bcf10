"""Which devices a run gets, and how many replicas of the model fit on them."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from megatron_gptx.config.errors import ConfigError, UserError
from megatron_gptx.config.schema import Config

HOST_LINE = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=(?P<slots>[1-9][0-9]*)$")


class Placement(NamedTuple):
    """Where the ranks of a run go."""

    device: str
    replicas: int
    ranks: int


def place(config: Config) -> Placement:
    """Choose the device type and the number of replicas.

    Raises:
        ConfigError: the configuration asks for more devices than there are.
    """
    stages, wanted = config.parallel.pipeline_stages, config.parallel.data_replicas
    needed = stages * (wanted or 1)
    slots = _hostfile_slots(Path(config.launch.hostfile)) if config.launch.hostfile else None
    device = config.launch.device
    available = count_gpus() if slots is None and device != "cpu" else slots or 0
    if device == "auto":
        device = "cuda" if available >= needed else "cpu"
    if device == "cuda" and available < needed:
        raise ConfigError(
            f"launch.device is cuda, and parallel asks for {needed} GPUs ({stages} pipeline stages "
            f"x {wanted or 1} replicas), but there are {available}; use fewer stages or replicas, "
            "or launch.device: cpu"
        )
    replicas = wanted or (available // stages if device == "cuda" else 1)
    return Placement(device, replicas, stages * replicas)


def local_device(config: Config) -> str:
    """Return the device of a script that runs as one process on this machine."""
    return "cuda" if config.launch.device != "cpu" and count_gpus() else "cpu"


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use."""
    # Not through torch: its import takes seconds, and a plan should not.
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = _visible_devices()
    return found if visible is None else min(found, visible)


def _visible_devices() -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else len([part for part in visible.split(",") if part.strip()])


def _hostfile_slots(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"launch.hostfile {path} cannot be read: {error.strerror}") from None
    slots = 0
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = HOST_LINE.match(text)
        if match is None:
            raise UserError(
                f"{path}:{number}: expected a line such as 'node1 slots=8', got {text!r}"
            )
        slots += int(match["slots"])
    if not slots:
        raise UserError(f"{path}: no hosts; expected lines such as 'node1 slots=8'")
    return slots
