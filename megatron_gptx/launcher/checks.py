"""What a launch would fail by: folders, ports, hosts and checkpoints, before a process starts."""

import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from megatron_gptx.checkpoint.changes import (
    TWO_EXPERIMENTS,
    check_model,
    mixed_experiments,
    optimizer_remedy,
    saved_model,
    saved_optimizer,
)
from megatron_gptx.checkpoint.choice import at_step, choose_checkpoint, named, newest_readable
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.config.errors import OptionError, UserError, why
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.optimizers import OptimizerName
from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Check, Problem
from megatron_gptx.data.build import build_validation
from megatron_gptx.data.fingerprint import fingerprints
from megatron_gptx.launcher.devices import hostfile_slots, local_device
from megatron_gptx.launcher.hosts import check_words, hosts_environment

# Enough to ask for every host of a cluster while a name server keeps one of them waiting.
_QUESTIONS_AT_ONCE = 32


def launch_checks(config: Config, words: Sequence[str], *, fresh_may_go_on: bool) -> list[Check]:
    """Return the checks of what surrounds a run of ranks.

    Args:
        config: the run.
        words: script and arguments of every rank.
        fresh_may_go_on: `checkpoint.start: fresh` may find checkpoints of its own.
    """
    return [
        partial(_run_folder, config),
        partial(_port, config),
        partial(_hosts, config),
        partial(_remote_words, config, words),
        partial(_checkpoint, config, fresh_may_go_on=fresh_may_go_on),
    ]


def single_process_checks(config: Config) -> list[Check]:
    """Return the checks of a script that reads a trained model in one process."""
    return [partial(_run_folder_is_named, config), partial(_local_device, config)]


def dry_run_checks(config: Config, script: str, *, wanted: str | None) -> list[Check]:
    """Return the checks of what such a script looks for itself, as soon as it is started.

    Args:
        config: the run.
        script: its name.
        wanted: the checkpoint that it is asked for.
    """
    checks: list[Check] = [partial(_chosen_checkpoint, config, wanted)]
    return [*checks, partial(_validation, config)] if script == "evaluate.py" else checks


def _local_device(config: Config) -> Iterator[Problem]:
    local_device(config)
    yield from ()


def _validation(config: Config) -> Iterator[Problem]:
    """Find validation data that is not there."""
    try:
        build_validation(config.data, seq_length=config.model.seq_length)
    except OptionError:
        raise
    except UserError as error:
        yield Problem("data.valid" if config.data.split is None else "data.split", str(error))


def _chosen_checkpoint(config: Config, wanted: str | None) -> Iterator[Problem]:
    """Find a checkpoint that is not there, or is of another model."""
    if not config.output.run_dir.strip():
        return
    try:
        found = choose_checkpoint(config.output.run_dir, wanted)
        check_model(found, config.model, any_seq_length=True)
    except CheckpointError as error:
        yield Problem("output.run_dir" if wanted is None else "", str(error))


def _run_folder_is_named(config: Config) -> Iterator[Problem]:
    if not config.output.run_dir.strip():
        yield Problem(
            "output.run_dir",
            "is not set: every experiment names a folder of its own, such as runs/my-model; a "
            "start in a folder with checkpoints goes on from them",
        )


def _run_folder(config: Config) -> Iterator[Problem]:
    """Yield why the run folder cannot be used; nothing is made."""
    yield from _run_folder_is_named(config)
    run_dir = Path(config.output.run_dir or ".")
    for folder in (run_dir, run_dir / "logs", run_dir / "checkpoints"):
        if problem := _unusable(folder.absolute()):
            yield Problem("output.run_dir", problem)
            return


def _unusable(folder: Path) -> str | None:
    """Return why nobody could write into a folder, which need not exist yet."""
    for above in (folder, *folder.parents):
        try:
            if not above.is_dir():
                if above.exists() or above.is_symlink():
                    what = "a file" if above.exists() else "a link to nothing"
                    if above == folder:
                        return f"{folder} is {what}, not a folder"
                    return f"{folder} cannot be a folder: {above} is {what}"
                above.stat()  # raises what is wrong with the name, or that there is no such folder
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{folder} cannot be a folder: {why(error).lower()}"
        if not os.access(above, os.W_OK | os.X_OK):
            return f"{folder} cannot be written: you may not write into {above}"
        return None
    return None


def _port(config: Config) -> Iterator[Problem]:
    """Find a port that another program has: of several nodes it need not be one of this machine."""
    port = config.launch.master_port
    if port is None or config.launch.hostfile is not None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = "another program listens there" if taken else why(error).lower()
            yield Problem(
                "launch.master_port",
                f"port {port} of this machine cannot be used: {what}; choose another one, or null, "
                "which finds a free one",
            )


def _hosts(config: Config) -> Iterator[Problem]:
    """Find hosts that nobody here knows the address of, so that nothing could start there."""
    if config.launch.hostfile is None:
        return
    path = Path(config.launch.hostfile)
    names = list(hostfile_slots(path))
    if config.launch.launcher != "pdsh":
        # SLURM and the MPIs may have a list of nodes of their own; the ranks meet by this name.
        names = names[:1] if config.launch.master_addr is None else []
    with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as pool:
        known = list(pool.map(_is_known, names))
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    for name in (name for name, is_known in zip(names, known, strict=True) if not is_known):
        number = next(n for n, words in enumerate(lines, 1) if words[:1] == [name])
        yield Problem(
            "launch.hostfile",
            f"{path}:{number}: no address is known here for the host {name!r}; correct the name, "
            "or add it to the name service or to /etc/hosts",
        )
    address = config.launch.master_addr
    if address is not None and not _has_address(address):
        yield Problem(
            "launch.master_addr",
            f"no address is known here for {address!r}; correct it, or use null, which takes the "
            "first host of the hostfile",
        )


def _is_known(host: str) -> bool:
    """Return whether a host has an address, or ssh knows by another name or way how to reach it."""
    if _has_address(host):
        return True
    if shutil.which("ssh") is None:
        return False
    asked = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=False)
    options = dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)
    behind = options.get("proxyjump", "none") != "none" or "proxycommand" in options
    name = options.get("hostname", host)
    return behind or (name != host and _has_address(name))


def _has_address(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _remote_words(config: Config, words: Sequence[str]) -> Iterator[Problem]:
    """Find what may not pass through the shells of other nodes."""
    if config.launch.hostfile is None:
        return
    for check in (partial(check_words, words), partial(hosts_environment, os.environ)):
        try:
            check()
        except UserError as error:
            yield Problem("launch.hostfile", str(error))


def _checkpoint(config: Config, *, fresh_may_go_on: bool) -> Iterator[Problem]:
    """Find a run folder with checkpoints that this run could not go on from."""
    run_dir, start = config.output.run_dir, config.checkpoint.start
    if any(_run_folder(config)):
        return
    # What a job that is started again goes on from, its first start has found.
    step = None if fresh_may_go_on else config.checkpoint.start_step
    try:
        if step is not None:
            found: Checkpoint | None = at_step(run_dir, step)
        else:
            found = newest_readable(run_dir) if start == "intact" else newest(run_dir)
    except CheckpointError as error:
        yield Problem("output.run_dir" if step is None else "checkpoint.start", str(error))
        return
    if found is None:
        yield from _source_problems(config)
        return
    if start == "fresh" and not fresh_may_go_on:
        yield Problem(
            "checkpoint.start",
            f"is 'fresh', but {found.path} exists; choose another output.run_dir, or auto to "
            "resume",
        )
        return
    try:
        yield from _model_problems(found, config.model)
        yield from _optimizer_problems(found, config.optimizer.name)
        yield from _experiment_problems(found, config)
    except CheckpointError as error:
        yield Problem("output.run_dir", str(error))


def _source_problems(config: Config) -> Iterator[Problem]:
    """Yield why a run cannot begin with the weights that it names."""
    option = config.checkpoint.initialize_from
    if option is None:
        return
    try:
        check_model(named(Path(option)), config.model, any_seq_length=True)
    except CheckpointError as error:
        yield Problem("checkpoint.initialize_from", str(error))


def _experiment_problems(found: Checkpoint, config: Config) -> Iterator[Problem]:
    """Yield what would make two experiments of one run."""
    if config.checkpoint.accept_changes:
        return
    try:
        data = fingerprints(config.data)
    except UserError:
        return  # said by what looks at the data
    for line in mixed_experiments(found, config, data):
        option, _, how = line.partition(": ")
        yield Problem(option, f"{how}; {found.path} is of another experiment: {TWO_EXPERIMENTS}")


def _model_problems(found: Checkpoint, model: ModelConfig) -> Iterator[Problem]:
    """Yield each option by which the model is not the one of a checkpoint."""
    for option, (before, now) in model.differences(saved_model(found)).items():
        yield Problem(
            f"model.{option}",
            f"is {_written(now)}, but the model in {found.path} has {_written(before)}; take that "
            "value to go on from there, or another output.run_dir",
        )


def _optimizer_problems(found: Checkpoint, wanted: OptimizerName) -> Iterator[Problem]:
    """Yield that a checkpoint holds the state of another optimizer."""
    saved = saved_optimizer(found)
    if saved != wanted:
        yield Problem(
            "optimizer.name",
            f"is {wanted}, but {found.path} holds the state of {saved}; {optimizer_remedy(found)}",
        )


def _written(value: object) -> str:
    """Return a value as it is written in a configuration."""
    return value if isinstance(value, str) else json.dumps(value)
