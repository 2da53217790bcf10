"""What ranks of other hosts need before they start: variables, and a way to get there."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.interface import HOSTS
from megatron_gptx.launcher.command_line import CPU_DEFAULTS
from megatron_gptx.launcher.devices import hostfile_slots
from megatron_gptx.launcher.hosts import check_value, file_variables, write_for_runner

# What DeepSpeed's runner does not pass on by itself, and ranks of all hosts need.
FORWARDED = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", *CPU_DEFAULTS)
# Where users of pdsh leave arguments for ssh, such as a port. Of two like options the first counts.
SSH_ARGUMENTS = "PDSH_SSH_ARGS_APPEND"
# Never a question that nobody answers, and no session that waits for a host which is gone.
SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),
)


def forward(config: Config, variables: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the runner's environment, which names a file of what it is to pass on to all hosts.

    Args:
        config: the run.
        variables: the environment of the ranks, as they would have it on this machine.
        root: folder from which ranks import this package.

    Raises:
        UserError: a value would be more than text to a shell of another host.
    """
    assert config.launch.hostfile is not None, "one node gets its environment as it is"
    passed = {name: variables[name] for name in FORWARDED if name in variables}
    passed[HOSTS] = ":".join(hostfile_slots(Path(config.launch.hostfile)))
    users = file_variables()
    passed |= users
    # The runner would let every host import from the current folder, where a user's `queue.py`
    # may lie; Python 3.10 does so all the same where pdsh starts a launcher there.
    path = users.get("PYTHONPATH", variables.get("PYTHONPATH"))
    passed |= {"PYTHONPATH": f"{root}:{path}" if path else str(root), "PYTHONSAFEPATH": "1"}
    for name, value in passed.items():
        check_value(name, value, "the environment")
    lines = "".join(f"{name}={value}\n" for name, value in passed.items())
    file = write_for_runner(config, "environment", lines)
    arguments = " ".join((variables.get(SSH_ARGUMENTS, ""), *SSH_OPTIONS)).strip()
    return {**variables, "DS_ENV_FILE": str(file), SSH_ARGUMENTS: arguments}


def check_reachable(config: Config) -> None:
    """Raise UserError that names all hosts which ssh has to reach, and does not."""
    if config.launch.hostfile is None or config.launch.launcher != "pdsh":
        return
    hosts = list(hostfile_slots(Path(config.launch.hostfile)))
    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        found = [problem for problem in pool.map(_unreachable, hosts) if problem]
    if found:
        raise UserError(
            f"{len(found)} of the {len(hosts)} hosts of {config.launch.hostfile} cannot be reached "
            "by ssh:\n  " + "\n  ".join(found) + "\ntry `ssh HOST true`, which must ask nothing"
        )


def _unreachable(host: str) -> str | None:
    """Return a host and what ssh says of it, or None where it answers."""
    try:
        done = subprocess.run(
            ["ssh", *shlex.split(os.environ.get(SSH_ARGUMENTS, "")), *SSH_OPTIONS, host, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{host}: no answer within 60 s"
    except ValueError as error:
        return f"{host}: {SSH_ARGUMENTS} cannot be split into words: {error}"
    except OSError as error:
        return f"{host}: ssh cannot be started: {error.strerror}"
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"{host}: {said[-1] if said else f'ssh ends with status {done.returncode}'}"
