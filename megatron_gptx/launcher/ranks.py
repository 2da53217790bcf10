"""A run from its first start to its end: started, asked to stop, started again."""

import itertools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.log import failure_marker, finished_marker, stopped_marker
from megatron_gptx.distributed.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    MISTAKE,
    STOPPED,
)
from megatron_gptx.launcher.command import environment, launch_command
from megatron_gptx.launcher.devices import Placement, describe
from megatron_gptx.launcher.hosts import hosts_environment
from megatron_gptx.launcher.requests import SIGNALS, StopRequests
from megatron_gptx.launcher.run import explain, run_ranks

# How a run ends that is not started again: it is done, or would end in the same way.
FINAL = (FINISHED, MISTAKE, STOPPED, INTERRUPTED)


def launch(
    config: Config,
    placement: Placement,
    worker: Path,
    arguments: Sequence[str],
    *,
    requests: StopRequests,
) -> int:
    """Run a script on all ranks, again after crashes, and return how that ended."""
    run_dir, restarts = Path(config.output.run_dir), config.launch.max_restarts
    variables = environment(placement)
    if config.launch.hostfile is not None:
        variables = hosts_environment(variables)
    logs = prepare_logs(run_dir)
    requests.pass_on(run_dir)
    requests.limit(config.training.time_limit_minutes)
    sys.stdout.write(
        f"\nstarting {placement.ranks} rank(s), {describe(config, placement)}; logs: {logs}\n"
    )
    for restart in itertools.count(1):
        sys.stdout.flush()
        if requests.reasons:
            sys.stdout.write(f"stopped by {requests.reasons[0]} before any rank was started\n")
            return STOPPED
        status = run_ranks(
            launch_command(config, placement, worker, arguments),
            environment=variables,
            folder=Path.cwd(),
            requests=requests,
            last_signal=signal.SIGKILL if config.launch.hostfile is None else signal.SIGTERM,
        )
        status = _outcome(status, run_dir, requests)
        if status in FINAL or requests.reasons or restart > restarts:
            return status
        sys.stdout.write(
            f"restart {restart} of {restarts} after status {status}: the ranks go on from the "
            "newest intact checkpoint\n"
        )
        prepare_logs(run_dir)
    raise AssertionError("unreachable: restarts are counted")


def prepare_logs(run_dir: Path) -> Path:
    """Return the folder of a run's logs, in which nothing says how an earlier start ended."""
    logs = run_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for marker in (failure_marker, finished_marker, stopped_marker):
            marker(run_dir).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"output.run_dir {run_dir} cannot be used: {error}") from None
    return logs


def _outcome(status: int, run_dir: Path, requests: StopRequests) -> int:
    """Return how the ranks ended, which DeepSpeed's launchers only half know, and say so."""
    if requests.at_once:
        return INTERRUPTED
    if status == FINISHED and finished_marker(run_dir).exists():
        return FINISHED
    marker = stopped_marker(run_dir)
    if status in (FINISHED, FAILED, STOPPED) and marker.exists():
        sys.stdout.write(f"{marker.read_text()}\n")
        return STOPPED
    # A process that ends by such a signal has no handler yet, and has taken no step.
    if requests.reasons and status - 128 in SIGNALS:
        sys.stdout.write(f"stopped by {requests.reasons[0]} before a step was taken\n")
        return STOPPED
    if status == FINISHED:
        sys.stderr.write(
            f"error: the ranks ended before the run was finished; see {run_dir / 'logs'}\n"
        )
        return FAILED
    explain(status, run_dir / "logs")
    return status
