"""./deepy.py SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run] [ARGUMENT ...]"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megatron_gptx.config.errors import ConfigError, UserError
from megatron_gptx.config.load import load, load_with_sources
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.costs.plan import make_plan
from megatron_gptx.data.build import decide_steps
from megatron_gptx.data.check import check_datasets
from megatron_gptx.distributed.log import failure_marker, finished_marker
from megatron_gptx.launcher.command import (
    SINGLE_PROCESS,
    WITHOUT_ARGUMENTS,
    environment,
    launch_command,
    rendezvous,
)
from megatron_gptx.launcher.devices import Placement, check_placement, describe, local_device, place
from megatron_gptx.launcher.run import explain, run

USAGE = """\
usage: ./deepy.py SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run]
                  [ARGUMENT ...]

  ./deepy.py train.py configs/1B.yml             train on the devices there are
  ./deepy.py train.py configs/1B.yml --dry-run   only check the configuration and print the plan
  ./deepy.py generate.py configs/1B.yml --prompt "def main("
  ./deepy.py generate.py --help                  the arguments of a script
  ./deepy.py evaluate.py configs/1B.yml          validation loss of the newest checkpoint
  ./deepy.py show configs/1B.yml                 every option, and where its value comes from

Later files override earlier ones, and --set overrides all of them. Arguments that are not listed
here go to the script.
"""


class RankError(Exception):
    """The ranks ended badly, and nobody has said so."""


def main(argv: Sequence[str], root: Path) -> int:
    """Run one command of the launcher and return its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    try:
        return _main(argv, root)
    except RankError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _main(argv: Sequence[str], root: Path) -> int:
    script, *rest = argv
    worker = root / script
    if script != "show" and not (
        Path(script).name == script.strip() and script.endswith(".py") and worker.is_file()
    ):
        raise UserError(f"{script}: no such script in {root}; see ./deepy.py --help")
    if {"-h", "--help"} & set(rest):
        return _help(script, worker)
    paths, options, arguments = _parse(rest)
    if arguments and script in ("show", *WITHOUT_ARGUMENTS):
        raise UserError(f"{script} does not know {shlex.join(arguments)}; see ./deepy.py --help")
    if script == "show":
        _show(paths, options.set)
        return 0
    config = load(paths, options.set)
    if script in SINGLE_PROCESS:
        alone = Placement(local_device(config), replicas=1, ranks=1)
        if options.dry_run:
            sys.stdout.write(f"{make_plan(config).table()}\n")
            return 0
        status = _start(config, alone, worker, arguments)
        explain(status)
        return status
    config, placement = resolve(config)
    sys.stdout.write(f"{make_plan(config).table()}\n")
    if options.dry_run:
        return 0
    check_placement(config, placement)
    check_datasets(config)
    if config.training.epochs is not None:
        epochs, config = config.training.epochs, decide_steps(config)
        sys.stdout.write(f"\ntraining.epochs {epochs:g}: {config.training.steps:,} steps\n")
    logs = _prepare_logs(config)
    sys.stdout.write(
        f"\nstarting {placement.ranks} rank(s), {describe(config, placement)}; logs: {logs}\n"
    )
    sys.stdout.flush()
    status = _start(config, placement, worker, arguments)
    explain(status, logs)
    if status == 0 and not finished_marker(Path(config.output.run_dir)).exists():
        # DeepSpeed's runner returns 0 when what it started was killed.
        raise RankError(f"the ranks ended before the run was finished; see {logs}")
    return status


def _start(config: Config, placement: Placement, worker: Path, arguments: Sequence[str]) -> int:
    return run(
        launch_command(config, placement, worker, arguments),
        environment=environment(placement),
        folder=Path.cwd(),
    )


def _prepare_logs(config: Config) -> Path:
    logs = Path(config.output.run_dir) / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for marker in (failure_marker, finished_marker):
            marker(Path(config.output.run_dir)).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"output.run_dir {config.output.run_dir} cannot be used: {error}") from None
    return logs


def resolve(config: Config) -> tuple[Config, Placement]:
    """Return the configuration with replicas and batch sizes decided, and where its ranks go."""
    placement = place(config)
    parallel = config.parallel.model_copy(update={"data_replicas": placement.replicas})
    config = config.model_copy(update={"parallel": parallel})
    if config.launch.hostfile is not None:
        # Not every launcher tells ranks of other nodes where they meet.
        launch = config.launch.model_copy(update=rendezvous(config))
        config = config.model_copy(update={"launch": launch})
    try:
        _ = config.batch
    except ValueError as error:
        raise ConfigError(
            f"{placement.replicas} replicas fit on the devices here: {error}"
        ) from None
    return config, placement


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see ./deepy.py --help")


def _help(script: str, worker: Path) -> int:
    if script not in SINGLE_PROCESS:
        sys.stdout.write(USAGE)
        return 0
    command = [sys.executable, str(worker), "--help"]
    return run(command, environment=dict(os.environ), folder=Path.cwd())


def _parse(argv: Sequence[str]) -> tuple[list[Path], argparse.Namespace, list[str]]:
    rest, paths = list(argv), []
    while rest and not rest[0].startswith("-"):
        paths.append(Path(rest.pop(0)))
    if not paths:
        raise UserError(f"no configuration given\n\n{USAGE}")
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true")
    options, arguments = parser.parse_known_args(rest)
    return paths, options, arguments


def _show(paths: Sequence[Path], overrides: Sequence[str]) -> None:
    loaded = load_with_sources(paths, overrides)
    sys.stdout.write(dump(loaded.config))
    for option, source in loaded.sources.items():
        sys.stdout.write(f"# {option}: {source}\n")
