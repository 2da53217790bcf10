"""./deepy.py SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run] [ARGUMENT ...]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_gptx.config.errors import ConfigError, UserError
from megatron_gptx.config.load import load, load_with_sources
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.costs.plan import make_plan
from megatron_gptx.data.check import check_datasets
from megatron_gptx.launcher.command import SINGLE_PROCESS, environment, launch_command
from megatron_gptx.launcher.devices import Placement, place
from megatron_gptx.launcher.run import explain, run

USAGE = """\
usage: ./deepy.py SCRIPT CONFIG [CONFIG ...] [--set section.key=value ...] [--dry-run]
                  [ARGUMENT ...]

  ./deepy.py train.py configs/1B.yml             train on the devices there are
  ./deepy.py train.py configs/1B.yml --dry-run   only check the configuration and print the plan
  ./deepy.py generate.py configs/1B.yml --prompt "def main("
  ./deepy.py evaluate.py configs/1B.yml          validation loss of the newest checkpoint
  ./deepy.py show configs/1B.yml                 every option, and where its value comes from

Later files override earlier ones, and --set overrides all of them. Arguments that are not listed
here go to the script.
"""


def main(argv: Sequence[str], root: Path) -> int:
    """Run one command of the launcher and return its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    try:
        return _main(argv, root)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _main(argv: Sequence[str], root: Path) -> int:
    script, paths, options, arguments = _parse(argv)
    if script == "show":
        _show(paths, options.set)
        return 0
    worker = root / script
    if not worker.is_file():
        raise UserError(f"{script}: no such script in {root}; see ./deepy.py --help")
    config, placement = resolve(load(paths, options.set))
    if script in SINGLE_PROCESS:
        return run(
            launch_command(config, placement, worker, arguments),
            environment=environment(placement._replace(ranks=1)),
            folder=Path.cwd(),
        )
    sys.stdout.write(f"{make_plan(config).table()}\n")
    if options.dry_run:
        return 0
    check_datasets(config)
    logs = Path(config.output.run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / ".failed").unlink(missing_ok=True)
    where = "one process per GPU" if placement.device == "cuda" else "CPU processes"
    sys.stdout.write(f"\nstarting {placement.ranks} ranks ({where}); their logs: {logs}\n")
    sys.stdout.flush()
    status = run(
        launch_command(config, placement, worker, arguments),
        environment=environment(placement),
        folder=Path.cwd(),
    )
    explain(status, logs)
    return status


def resolve(config: Config) -> tuple[Config, Placement]:
    """Return the configuration with replicas and batch sizes decided, and where its ranks go."""
    placement = place(config)
    parallel = config.parallel.model_copy(update={"data_replicas": placement.replicas})
    config = config.model_copy(update={"parallel": parallel})
    try:
        _ = config.batch
    except ValueError as error:
        raise ConfigError(
            f"{placement.replicas} replicas fit on the devices here: {error}"
        ) from None
    return config, placement


def _parse(
    argv: Sequence[str],
) -> tuple[str, list[Path], argparse.Namespace, list[str]]:
    script, *rest = argv
    paths = []
    while rest and not rest[0].startswith("-"):
        paths.append(Path(rest.pop(0)))
    if not paths:
        raise UserError(f"no configuration given\n\n{USAGE}")
    parser = argparse.ArgumentParser(usage=USAGE, allow_abbrev=False, add_help=False)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true")
    options, arguments = parser.parse_known_args(rest)
    return script, paths, options, arguments


def _show(paths: Sequence[Path], overrides: Sequence[str]) -> None:
    loaded = load_with_sources(paths, overrides)
    sys.stdout.write(dump(loaded.config))
    for option, source in loaded.sources.items():
        sys.stdout.write(f"# {option}: {source}\n")
