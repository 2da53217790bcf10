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
from megatron_gptx.distributed.status import FINISHED, INTERRUPTED, MISTAKE, STOPPED
from megatron_gptx.launcher.command import (
    SINGLE_PROCESS,
    WITHOUT_ARGUMENTS,
    environment,
    launch_command,
    rendezvous,
)
from megatron_gptx.launcher.devices import Placement, check_placement, local_device, place
from megatron_gptx.launcher.ranks import launch
from megatron_gptx.launcher.requests import StopRequests
from megatron_gptx.launcher.run import explain, run
from megatron_gptx.launcher.slurm import requeue, slurm_job, started_before

USAGE = """\
usage: ./deepy.py SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run]
                  [--requeue] [ARGUMENT ...]

  ./deepy.py train.py configs/1B.yml             train on the devices there are
  ./deepy.py train.py configs/1B.yml --dry-run   only check the configuration and print the plan
  ./deepy.py generate.py configs/1B.yml --prompt "def main("
  ./deepy.py generate.py --help                  the arguments of a script
  ./deepy.py evaluate.py configs/1B.yml          validation loss of the newest checkpoint
  ./deepy.py show configs/1B.yml                 every option, and where its value comes from

SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or `touch RUN_DIR/logs/.stop` end a run after its step: it is
saved, the status is 75, and the same command goes on; with --requeue, SLURM starts it again.
docs/reliability.md has all statuses.

Later files override earlier ones, and --set overrides all of them. Arguments that are not listed
here go to the script.
"""


def main(argv: Sequence[str], root: Path) -> int:
    """Run one command of the launcher and return its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return FINISHED if argv else MISTAKE
    try:
        return _main(argv, root)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(argv: Sequence[str], root: Path) -> int:
    script, *rest = argv
    worker = root / script
    # Looked up, not asked for: a name may be longer than a system takes, or none at all.
    if script not in ("show", *(path.name for path in root.glob("*.py"))):
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
        if options.requeue:
            raise UserError(f"--requeue is for scripts that train, not for {script}")
        alone = Placement(local_device(config), replicas=1, ranks=1)
        if options.dry_run:
            sys.stdout.write(f"{make_plan(config).table()}\n")
            return 0
        status = run(
            launch_command(config, alone, worker, arguments),
            environment=environment(alone),
            folder=Path.cwd(),
        )
        explain(status)
        return status
    job = slurm_job() if options.requeue else None
    earlier = job if job is not None and started_before() else None
    with StopRequests() as requests:
        status = _train(
            config, worker, arguments, dry_run=options.dry_run, requests=requests, job=earlier
        )
    requeued = status == STOPPED and job is not None and requeue(job)
    if status == STOPPED and not requeued and config.checkpoint.begins:
        start = config.checkpoint.start
        refuses = "refuses every checkpoint, this run's too"
        does = refuses if start == "fresh" else "goes back once more"
        sys.stdout.write(f"but with --set checkpoint.start=auto: {start!r} {does}\n")
    return status


def _train(
    config: Config,
    worker: Path,
    arguments: Sequence[str],
    *,
    dry_run: bool,
    requests: StopRequests,
    job: str | None,
) -> int:
    config, placement = resolve(config)
    sys.stdout.write(f"{make_plan(config).table()}\n")
    if dry_run:
        return FINISHED
    check_placement(config, placement)
    check_datasets(config)
    if config.training.epochs is not None:
        epochs, config = config.training.epochs, decide_steps(config)
        sys.stdout.write(f"\ntraining.epochs {epochs:g}: {config.training.steps:,} steps\n")
    return launch(config, placement, worker, arguments, requests=requests, job=job)


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
    parser.add_argument("--requeue", action="store_true")
    options, arguments = parser.parse_known_args(rest)
    return paths, options, arguments


def _show(paths: Sequence[Path], overrides: Sequence[str]) -> None:
    loaded = load_with_sources(paths, overrides)
    sys.stdout.write(dump(loaded.config))
    for option, source in loaded.sources.items():
        sys.stdout.write(f"# {option}: {source}\n")
