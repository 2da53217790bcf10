"""A run from its first start to its end: started, asked to stop, started again."""

import itertools
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.exit_status import (
    FAILED,
    FINISHED,
    HUNG,
    INTERRUPTED,
    MISTAKE,
    STOPPED,
)
from megatron_gptx.distributed.ownership import let_ranks_in, take_over
from megatron_gptx.distributed.run_files import (
    failure_marker,
    finished_marker,
    first_failure,
    fresh_marker,
    stopped_marker,
)
from megatron_gptx.launcher.command_line import environment, launch_command
from megatron_gptx.launcher.devices import Placement, describe, hostfile_slots
from megatron_gptx.launcher.hosts import hosts_environment
from megatron_gptx.launcher.nodes import check_reachable, forward
from megatron_gptx.launcher.processes import explain, run_ranks
from megatron_gptx.launcher.stop_requests import SIGNALS, StopRequests

# How long ranks of other nodes may take to save once DeepSpeed's runner has died: as long as it
# gives them itself.
PATIENCE_SECONDS = 30
# What `status_of` makes of ssh's 255, which the launcher would give for SIGHUP to a rank.
LOST_CONNECTION = 129
# How a run ends that is not started again: it is done, or would end in the same way.
FINAL = (FINISHED, MISTAKE, STOPPED, INTERRUPTED)


def launch(
    config: Config,
    placement: Placement,
    worker: Path,
    arguments: Sequence[str],
    *,
    requests: StopRequests,
    job: str | None = None,
) -> int:
    """Run a script on all ranks, again after crashes, and return how that ended.

    Args:
        config: the run.
        placement: where its ranks go.
        worker: the script.
        arguments: what it gets besides the configuration.
        requests: what ends the run early.
        job: number of the SLURM job that is started again, which may have begun with `fresh`.
    """
    run_dir = Path(config.output.run_dir)
    # Before anything there is touched: it may be another run's.
    with take_over(run_dir) as hold:
        prepare_logs(run_dir)
        requests.pass_on(run_dir)
        let_ranks_in(hold, run_dir)
        return _launch(config, placement, worker, arguments, requests=requests, job=job)


def _launch(
    config: Config,
    placement: Placement,
    worker: Path,
    arguments: Sequence[str],
    *,
    requests: StopRequests,
    job: str | None,
) -> int:
    run_dir, restarts = Path(config.output.run_dir), config.launch.max_restarts
    several = config.launch.hostfile is not None
    variables = _variables(config, placement, worker.parent)
    check_reachable(config)
    of_others = _fresh_start(run_dir)
    began = job is not None and of_others is not None and of_others.job == job
    if began and config.checkpoint.begins:
        config = _going_on(config, "auto")
    requests.limit(config.training.time_limit_minutes)
    sys.stdout.write(
        f"\nstarting {placement.ranks} rank(s), {describe(config, placement)}; logs: "
        f"{run_dir / 'logs'}\n"
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
            last_signal=signal.SIGTERM if several else signal.SIGKILL,
            patience_seconds=PATIENCE_SECONDS if several else 0,
            failure=failure_marker(run_dir) if several else None,
        )
        if several and status == FAILED:
            _wait_for_word(run_dir)
        status = _outcome(status, run_dir, requests, several=several)
        if status in FINAL or requests.reasons or restart > restarts:
            return status
        sys.stdout.write(
            f"restart {restart} of {restarts} after status {status}: the ranks go on from the "
            "newest intact checkpoint\n"
        )
        prepare_logs(run_dir)
        # Before it has begun afresh, checkpoints here would be those of another run.
        if not config.checkpoint.begins or _fresh_start(run_dir) != of_others:
            config = _going_on(config, "intact")
    raise AssertionError("unreachable: restarts are counted")


def _variables(config: Config, placement: Placement, root: Path) -> dict[str, str]:
    """Return the environment of the launcher of DeepSpeed's that starts the ranks."""
    hostfile = config.launch.hostfile
    if hostfile is None:
        return environment(placement)
    most = max(hostfile_slots(Path(hostfile)).values())
    return forward(config, hosts_environment(environment(placement, on_one_host=most)), root)


def _going_on(config: Config, start: Literal["auto", "intact"]) -> Config:
    """Return a run that goes on from its own checkpoints."""
    own = config.checkpoint.model_copy(update={"start": start})
    return config.model_copy(update={"checkpoint": own})


class _FreshStart(NamedTuple):
    """Whose beginning a run folder has seen: the SLURM job, and when its file was written."""

    job: str
    written_at: int


def _fresh_start(run_dir: Path) -> _FreshStart | None:
    """Return the last run that began afresh in a folder."""
    marker = fresh_marker(run_dir)
    try:
        return _FreshStart(marker.read_text(), marker.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


def prepare_logs(run_dir: Path) -> None:
    """Remove what says in a run's logs how an earlier start ended."""
    try:
        for marker in (failure_marker, finished_marker, stopped_marker):
            marker(run_dir).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"output.run_dir {run_dir} cannot be used: {why(error)}") from None


def _wait_for_word(run_dir: Path) -> None:
    """Wait for ranks of other nodes: a runner that got a signal ends before they have saved."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and not (
        stopped_marker(run_dir).exists() or failure_marker(run_dir).exists()
    ):
        time.sleep(0.2)


def _outcome(status: int, run_dir: Path, requests: StopRequests, *, several: bool) -> int:
    """Return how the ranks ended, which the launchers of nodes only half know, and say so."""
    if requests.at_once:
        return INTERRUPTED
    if status == FINISHED and finished_marker(run_dir).exists():
        return FINISHED
    lost_host = several and status == LOST_CONNECTION
    if lost_host:
        status = FAILED
    marker = stopped_marker(run_dir)
    politely = status in (FINISHED, FAILED, STOPPED) or status - 128 in SIGNALS
    if politely and marker.exists():
        # Without words where the disk is full.
        text = marker.read_text() or "stopped as asked; run the same command to go on"
        sys.stdout.write(f"{text}\n")
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
    if lost_host:
        sys.stderr.write(
            "error: the connection to a host was lost: ssh ended with status 255 (its own words, "
            f"with the host's name, stand above; logs: {run_dir / 'logs'})\n"
        )
    own = first_failure(run_dir)
    if several and own in (MISTAKE, HUNG):
        return own  # which the rank has explained, and no launcher passes on for sure
    explain(status, run_dir / "logs")
    return status
