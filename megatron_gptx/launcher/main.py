"""SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run] [ARGUMENT ...]

`./deepy.py` takes these words in a checkout, `gptx` where the package is installed.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from megatron_gptx.config.errors import OptionError, UserError
from megatron_gptx.config.load import draft, load_with_sources
from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Problem, findings
from megatron_gptx.config.yaml_reader import closest
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.costs.plan import make_plan
from megatron_gptx.data.build import decide_steps
from megatron_gptx.data.preflight import dataset_problems
from megatron_gptx.distributed.exit_status import FINISHED, INTERRUPTED, MISTAKE, STOPPED
from megatron_gptx.distributed.log import lossy_output
from megatron_gptx.launcher.arguments import OF_THE_LAUNCHER, meant, script_parser
from megatron_gptx.launcher.checks import dry_run_checks, launch_checks, single_process_checks
from megatron_gptx.launcher.command_line import (
    SINGLE_PROCESS,
    WITHOUT_ARGUMENTS,
    environment,
    launch_command,
    rendezvous,
)
from megatron_gptx.launcher.devices import Placement, check_placement, local_device, place
from megatron_gptx.launcher.processes import explain, run
from megatron_gptx.launcher.slurm import requeue, slurm_job, started_before
from megatron_gptx.launcher.stop_requests import StopRequests
from megatron_gptx.launcher.supervise import launch

USAGE = """\
usage: {program} {word} CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run]
       [--requeue] [ARGUMENT ...]

  {program} train configs/1B.yml                 train on the devices there are
  {program} train configs/1B.yml --dry-run       check all that a launch checks, print the plan
  {program} generate configs/1B.yml --prompt "def main("
  {program} generate --help                      its own arguments
  {program} evaluate configs/1B.yml              validation loss of the newest checkpoint
  {program} show configs/1B.yml                  every option, and where its value comes from

A configuration is a file here, or else one that comes with the package: configs/1B.yml, or 1B.

SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 or `touch RUN_DIR/logs/.stop` end a run after its step: it
is saved, the status is 75, and the same command goes on; with --requeue, SLURM starts it again.
docs/reliability.md has all statuses.

Later files override earlier ones, and --set overrides all of them. Arguments that are not listed
here go to the {noun}.
"""


def usage(program: str) -> str:
    """Return the help of the launcher, in the words of the program that was typed."""
    # `./deepy.py train.py` runs a script, `gptx train` a command; both run the same file.
    noun = "command" if program == "gptx" else "script"
    return USAGE.format(program=program, word=noun.upper(), noun=noun)


def main(argv: Sequence[str], root: Path, program: str = "./deepy.py") -> int:
    """Run one command of the launcher and return its exit status.

    Args:
        argv: a script's name, configurations, options and the script's own arguments.
        root: the folder of the scripts.
        program: what was typed before them, for messages.
    """
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage(program))
        return FINISHED if argv else MISTAKE
    try:
        return _main(argv, root, program)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(argv: Sequence[str], root: Path, program: str) -> int:
    given, *rest = _with_whole_prompts(argv)
    script = given if given == "show" else f"{given.removesuffix('.py')}.py"
    worker = root / script
    # Looked up, not asked for: a name may be longer than a system takes, or none at all.
    # The launcher itself and the packaging lie beside the scripts of a checkout.
    scripts = {path.name for path in root.glob("*.py")} - {"deepy.py", "setup.py"}
    if script not in ("show", *scripts):
        names = ["show", *sorted(name.removesuffix(".py") for name in scripts)]
        guess = closest(given.removesuffix(".py"), names)
        hint = f"did you mean {guess}? " if guess else ""
        raise UserError(f"{given}: no such script in {root}; {hint}see {program} --help")
    if {"-h", "--help"} & set(rest):
        return _help(script, worker, program)
    command = f"{program} {given}"
    paths, options, arguments = _parse(rest, program, command)
    if arguments and script in ("show", *WITHOUT_ARGUMENTS):
        does = meant(arguments[0], OF_THE_LAUNCHER, command)
        raise UserError(f"{given} does not know {shlex.join(arguments)}{does}")
    if script == "show":
        _show(paths, options.set)
        return 0
    if script in SINGLE_PROCESS:
        if options.requeue:
            raise UserError(f"--requeue is for scripts that train, not for {script}")
        parser = script_parser(script, f"{command} CONFIG")
        asked = parser.parse(["--config", "", *arguments]) if options.dry_run else None
        found = draft(paths, options.set)
        checks = single_process_checks(found.config) if found.config else []
        if found.config and asked is not None:
            checks += dry_run_checks(found.config, script, wanted=asked.checkpoint)
        config = found.finish(findings(checks)).config
        alone = Placement(local_device(config), replicas=1, ranks=1)
        if options.dry_run:
            sys.stdout.write(f"{make_plan(config, device=alone.device).table()}\n")
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
    # Whoever watches a run may leave: what is trained is worth more.
    with lossy_output() if not options.dry_run else nullcontext():
        with StopRequests() as requests:
            found = draft(paths, options.set)
            words = [str(worker), *arguments]
            config = found.finish(
                _training_problems(found.config, words, job=earlier) if found.config else ()
            ).config
            status = _train(
                config, worker, arguments, dry_run=options.dry_run, requests=requests, job=earlier
            )
        requeued = status == STOPPED and job is not None and requeue(job)
        if status == STOPPED and not requeued and config.checkpoint.begins:
            start = config.checkpoint.start
            fresh = "refuses every checkpoint, this run's too"
            does = fresh if start == "fresh" else "goes back once more"
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
    epochs, config = config.training.epochs, decide_steps(config)
    sys.stdout.write(f"{make_plan(config, device=placement.device).table()}\n")
    if dry_run:
        return FINISHED
    if epochs is not None:
        sys.stdout.write(f"\ntraining.epochs {epochs:g}: {config.training.steps:,} steps\n")
    return launch(config, placement, worker, arguments, requests=requests, job=job)


def _training_problems(
    config: Config, words: Sequence[str], *, job: str | None
) -> Iterator[Problem]:
    """Yield everything that a launch of ranks would fail by, of a configuration read in part too.

    Args:
        config: the configuration.
        words: script and arguments of every rank.
        job: number of the SLURM job that is started again.
    """

    def placement() -> Iterator[Problem]:
        check_placement(*resolve(config))
        yield from ()

    def epochs() -> Iterator[Problem]:
        if not wrong_data and not any(findings(config.data.checks())):
            decide_steps(resolve(config)[0])
        yield from ()

    yield from findings([placement])
    wrong_data = list(dataset_problems(config))
    yield from wrong_data
    yield from findings([epochs, *launch_checks(config, words, fresh_may_go_on=job is not None)])


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
        raise OptionError(
            "training.global_batch_size",
            f"{placement.replicas} replicas fit on the devices here: {error}",
        ) from None
    return config, placement


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # In argparse's words: `argument --set: expected one argument`.
        flag = message.partition(":")[0].removeprefix("argument ")
        if message.endswith("expected one argument"):
            message = f"{flag} needs a value, such as {flag} training.steps=100"
        if "ignored explicit argument" in message:
            message = f"{flag} takes no value"
        raise UserError(f"{message}; see {self.prog} --help")


def _help(script: str, worker: Path, program: str) -> int:
    if script not in SINGLE_PROCESS:
        sys.stdout.write(usage(program))
        return 0
    command = [sys.executable, str(worker), "--help"]
    return run(command, environment=dict(os.environ), folder=Path.cwd())


def _with_whole_prompts(argv: Sequence[str]) -> list[str]:
    """Return the words with each prompt that looks like an option joined: `--prompt=-x`."""
    whole: list[str] = []
    for word in argv:
        if whole and whole[-1] == "--prompt" and word.startswith("-"):
            whole[-1] = f"--prompt={word}"
        else:
            whole.append(word)
    return whole


def _parse(
    argv: Sequence[str], program: str, command: str
) -> tuple[list[Path], argparse.Namespace, list[str]]:
    rest, paths = list(argv), []
    while rest and not rest[0].startswith("-"):
        paths.append(Path(rest.pop(0)))
    if not all(argv[: len(paths)]):
        raise UserError("the name of a configuration is empty; name a file, such as configs/1B.yml")
    if not paths:
        late = any(Path(word).suffix in {".yml", ".yaml"} for word in argv)
        problem = "no configuration before the first option" if late else "no configuration given"
        raise UserError(f"{problem}\n\n{usage(program)}")
    parser = _Parser(prog=command, allow_abbrev=False, add_help=False)
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
