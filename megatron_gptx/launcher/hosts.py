"""Ranks on several nodes: DeepSpeed's runner, and what may pass through the shells behind it.

The runner joins words to lines that a shell of every node reads. Some it quotes by half (a word
with a space gets double quotes, in which `$(...)` still runs), some not at all; pdsh replaces `%h`
and `%n` besides. So nothing is quoted here: a word that would need it is refused. What the runner
passes on of the environment also stands in process lists and logs, where secrets must not be.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.config.schema import Config
from megatron_gptx.config.secrets import names_secret
from megatron_gptx.launcher.devices import hostfile_slots

HARMLESS = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What acts inside double quotes, or ends a line.
ACTIVE = re.compile(r"[$`\"\\\x00-\x1f\x7f]")
# deepspeed/launcher/runner.py, EXPORT_ENVS, and export_envs of the CUDA accelerator.
PASSED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")


def module_command(name: str) -> list[str]:
    """Return the words that run a module, and import nothing from the current folder."""
    return [sys.executable, str(Path(__file__).with_name("module.py")), name]


def hosts_command(
    config: Config, worker: Sequence[str], meeting: Mapping[str, str | int]
) -> list[str]:
    """Return the command that starts DeepSpeed's runner.

    Args:
        config: where and how; its hostfile is set.
        worker: script and arguments of every rank.
        meeting: address and port at which the ranks meet.

    Raises:
        UserError: a word, or this folder's name, would be read by a remote shell as more than text.
    """
    check_words(worker)
    assert config.launch.hostfile is not None, "one node needs no runner"
    return [
        *module_command("deepspeed.launcher.runner"),
        *("--hostfile", str(write_hostfile(config)), f"--launcher={config.launch.launcher}"),
        # One word each: what follows an option may start with a dash.
        *(
            [f"--launcher_args={config.launch.launcher_args}"]
            if config.launch.launcher_args
            else ()
        ),
        f"--master_addr={meeting['master_addr']}",
        f"--master_port={meeting['master_port']}",
        # It would ask the first host only, and answer with a traceback: launcher/nodes.py asks all.
        *("--no_local_rank", "--force_multi", "--no_ssh_check", "--log_level=critical"),
        *worker,
    ]


def check_words(worker: Sequence[str]) -> None:
    """Raise UserError where a remote shell would read a word, or this folder, as more than text."""
    for word in (str(Path.cwd()), sys.executable, *worker):
        if not HARMLESS.fullmatch(word):
            raise UserError(
                f"{word!r} would pass through the shells of other nodes, where it is more than a "
                "word; use letters, digits and _@+=:,./- only"
            )


def write_hostfile(config: Config) -> Path:
    """Return a copy of the hostfile that holds its hosts and nothing else.

    DeepSpeed reads what it is given by looser rules, and may do so after the file has changed.
    """
    assert config.launch.hostfile is not None, "one node needs no hostfile"
    slots = hostfile_slots(Path(config.launch.hostfile))
    text = "".join(f"{name} slots={count}\n" for name, count in slots.items())
    return write_for_runner(config, "hostfile", text)


def write_for_runner(config: Config, name: str, text: str) -> Path:
    """Write a file that DeepSpeed's runner reads into the folder of the logs.

    Raises:
        UserError: there is no room, or no permission.
    """
    path = Path(config.output.run_dir).absolute() / "logs" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {why(error)}") from None
    return path


def hosts_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for the runner, without the secrets that it would write into lines.

    Raises:
        UserError: a variable that it passes on, here or from its file of variables, is a secret or
            would be more than text to a shell.
    """
    file_variables()
    kept = {}
    for name, value in variables.items():
        if name.startswith(PASSED_ON):
            if names_secret(name) or not VARIABLE.fullmatch(name):
                continue
            check_value(name, value, "the environment")
        kept[name] = value
    return kept


def file_variables() -> dict[str, str]:
    """Return what the user's files of variables for DeepSpeed's runner hold.

    Raises:
        UserError: a line is no variable, or one that must not be passed on.
    """
    found = {}
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for path in (Path.home() / name, Path(name)):
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {why(error)}") from None
        for number, line in enumerate(lines, start=1):
            variable, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not VARIABLE.fullmatch(variable):
                raise UserError(f"{path}:{number}: expected NAME=value, got {line!r}")
            if names_secret(variable):
                raise UserError(
                    f"{path}:{number}: {variable} is a secret, which DeepSpeed would write into "
                    "command lines that everyone on the nodes can read; keep it in a file of the "
                    "node, mode 0600, such as the ~/.netrc of `wandb login`"
                )
            check_value(variable, value, f"{path}:{number}")
            found[variable] = value
    return found


def check_value(name: str, value: str, where: str) -> None:
    """Raise UserError where a variable's value would be more than text to a shell."""
    if ACTIVE.search(value):
        raise UserError(
            f"{where}: {name}={value!r} would pass through the shells of other nodes, where it is "
            "more than text; unset it, or remove what a shell would act on"
        )
