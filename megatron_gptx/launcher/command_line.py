"""The command lines that start ranks, and how a configuration travels to them."""

import base64
import os
import random
import socket
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.devices import Placement, hostfile_slots, visible_gpus
from megatron_gptx.launcher.hosts import hosts_command

# Scripts that run as one local process; every other one is started on all ranks.
SINGLE_PROCESS = ("generate.py", "evaluate.py")
WITHOUT_ARGUMENTS = ("train.py",)
# Below those that Linux gives to programs that ask for none in particular.
PORTS = range(20_000, 32_000)


def encode(config: Config) -> str:
    """Return a configuration as one word that no shell touches."""
    return base64.urlsafe_b64encode(zlib.compress(config.model_dump_json().encode())).decode()


def decode(word: str) -> Config:
    """Return the configuration that `encode` packed."""
    return Config.model_validate_json(zlib.decompress(base64.urlsafe_b64decode(word)))


def rendezvous(config: Config) -> dict[str, str | int]:
    """Return where the ranks of a run meet, what the configuration leaves open filled in."""
    address = config.launch.master_addr
    if address is None:
        hostfile = config.launch.hostfile
        address = next(iter(hostfile_slots(Path(hostfile)))) if hostfile else "127.0.0.1"
    return {"master_addr": address, "master_port": config.launch.master_port or free_port()}


def launch_command(
    config: Config, placement: Placement, script: Path, arguments: Sequence[str]
) -> list[str]:
    """Return the command that runs `script` on every rank."""
    worker = [str(script), "--config", encode(config), *arguments]
    if script.name in SINGLE_PROCESS:
        return [sys.executable, *worker]
    meeting = rendezvous(config)
    if config.launch.hostfile is None:
        # Without DeepSpeed's runner, signals and exit statuses reach us.
        names: Sequence[int | str] = range(placement.ranks)
        if placement.device == "cuda":
            names = visible_gpus() or names
        devices = ",".join(map(str, names[: placement.ranks]))
        program = Path(__file__).with_name("one_node.py")
        return [sys.executable, str(program), devices, str(meeting["master_port"]), *worker]
    return hosts_command(config, worker, meeting)


# For CPU ranks. Threads that spin while they wait stall a machine that does anything else, up to
# tenfold; and glibc would give a step's large activations back to the system, only to fault them
# in again in the next step.
CPU_DEFAULTS = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def environment(placement: Placement, *, on_one_host: int | None = None) -> dict[str, str]:
    """Return the environment of the launched processes, of which so many share one host's cores."""
    variables = dict(os.environ)
    variables.pop("DS_ACCELERATOR", None)
    if placement.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
        cores = len(os.sched_getaffinity(0))
        threads = str(max(1, cores // (on_one_host or placement.ranks)))
        variables = {**CPU_DEFAULTS, "OMP_NUM_THREADS": threads, **variables}
    return variables


def free_port() -> int:
    """Return a port that nobody has, for the ranks to meet at.

    Not one that the system would give, for it gives them to others too before the ranks are there.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
