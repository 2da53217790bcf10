"""Which devices a run gets, and how many replicas of the model fit on them."""

import os
import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from megatron_gptx.config.errors import OptionError, why
from megatron_gptx.config.schema import Config

HOST_LINE = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=(?P<slots>[1-9][0-9]*)$")


STARTED_WITH = {
    "pdsh": "pdsh",
    "openmpi": "mpirun",
    "mpich": "mpirun",
    "impi": "mpirun",
    "mvapich": "mpirun",
    "slurm": "srun",
}


class Placement(NamedTuple):
    """Where the ranks of a run go."""

    device: str
    replicas: int
    ranks: int


def place(config: Config) -> Placement:
    """Choose the device type and the number of replicas.

    Raises:
        OptionError: the configuration asks for more devices than there are.
    """
    if config.launch.hostfile is not None:
        return _place_on_hosts(config, Path(config.launch.hostfile))
    stages, wanted = config.parallel.pipeline_stages, config.parallel.data_replicas
    needed = stages * (wanted or 1)
    device = config.launch.device
    available = count_gpus() if device != "cpu" else 0
    if device == "auto":
        device = "cuda" if available >= needed else "cpu"
    if device == "cuda" and available < needed:
        raise OptionError(
            "launch.device",
            f"cuda needs {needed} GPU(s) for the layout of this run ({stages} pipeline stage(s) x "
            f"{wanted or 1} replica(s)), but there are {available}; use fewer stages or replicas, "
            "or cpu",
        )
    replicas = wanted or (available // stages if device == "cuda" else 1)
    return Placement(device, replicas, stages * replicas)


def describe(config: Config, placement: Placement) -> str:
    """Return where the ranks run, and why where that was not asked for."""
    if config.launch.hostfile is not None:
        where = f"over the hosts of {config.launch.hostfile}"
        return f"{where}, on their CPUs" if placement.device == "cpu" else where
    if placement.device == "cuda":
        return "one per GPU"
    if config.launch.device == "cpu":
        return "on the CPU"
    return f"on the CPU, since {placement.ranks} GPU(s) are needed and {count_gpus()} are here"


def check_placement(config: Config, placement: Placement) -> None:
    """Raise OptionError where this machine cannot start the ranks, or cannot train so there."""
    program = STARTED_WITH[config.launch.launcher]
    if config.launch.hostfile is not None and shutil.which(program) is None:
        raise OptionError(
            "launch.launcher",
            f"{config.launch.launcher!r} starts ranks with the program {program!r}, which is not "
            "installed here; install it, or name another launcher",
        )
    cores = os.cpu_count() or 1
    if placement.device == "cpu" and placement.ranks > max(64, 4 * cores):
        raise OptionError(
            "parallel.data_replicas",
            f"the layout of this run would start {placement.ranks} processes on the CPU, many more "
            "than it has cores; use fewer replicas or stages",
        )
    if placement.device == "cpu" and config.precision == "fp16":
        available = count_gpus()
        remedy = (
            "use as many stages as there are GPUs, such as with configs/overlays/one-gpu.yml"
            if available
            else "to train here all the same, add configs/overlays/cpu.yml, which sets fp32"
        )
        raise OptionError(
            "precision",
            "fp16 trains on GPUs only, and this run would use the CPU "
            f"({placement.ranks} GPU(s) needed, {available} here); {remedy}, or use bf16",
        )


def _place_on_hosts(config: Config, hostfile: Path) -> Placement:
    slots = sum(hostfile_slots(hostfile).values())
    stages = config.parallel.pipeline_stages
    replicas = config.parallel.data_replicas or max(1, slots // stages)
    if slots != stages * replicas:
        raise OptionError(
            "launch.hostfile",
            f"{hostfile} has {slots} slots, and DeepSpeed's runner starts a rank in each, but "
            f"parallel asks for {stages * replicas} ranks ({stages} pipeline stage(s) x {replicas} "
            "replica(s)); change the slots or parallel",
        )
    # What devices other hosts have, nobody here can know.
    return Placement("cpu" if config.launch.device == "cpu" else "cuda", replicas, slots)


def local_device(config: Config) -> str:
    """Return the device of a script that runs as one process on this machine.

    Raises:
        OptionError: the configuration insists on a GPU, and there is none.
    """
    if config.launch.device == "cpu":
        return "cpu"
    available = count_gpus()
    if config.launch.device == "cuda" and not available:
        raise OptionError("launch.device", "is cuda, but this machine has no GPU; use cpu")
    return "cuda" if available else "cpu"


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
    visible = visible_gpus()
    return found if visible is None else min(found, len(visible))


def visible_gpus() -> list[str] | None:
    """Return the names in CUDA_VISIBLE_DEVICES, or None where it is not set."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return None
    names = [name.strip() for name in variable.split(",")]
    # CUDA stops at the first name of no device; -1 is the usual way to hide them all.
    return list(takewhile(lambda name: name and not name.startswith("-"), names))


def hostfile_slots(path: Path) -> dict[str, int]:
    """Return the slots of each host in a DeepSpeed hostfile, in its order.

    Raises:
        OptionError: the file cannot be read, or a line is no host, which the message names.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _in_hostfile(f"{path.absolute()} cannot be read: {why(error)}") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = HOST_LINE.match(text)
        if match is None:
            raise _in_hostfile(
                f"{path}:{number}: expected a line such as 'node1 slots=8', got {text!r}"
            )
        if match["name"] in slots:
            raise _in_hostfile(f"{path}:{number}: {match['name']} is listed before; join its slots")
        slots[match["name"]] = int(match["slots"])
    if not slots:
        raise _in_hostfile(f"{path}: no hosts; expected lines such as 'node1 slots=8'")
    return slots


def _in_hostfile(message: str) -> OptionError:
    return OptionError("launch.hostfile", message)
