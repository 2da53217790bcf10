"""This process as one rank of a run: its device, its peers, and how it ends."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.distributed.build_lock import explain_build_locks
from megatron_gptx.distributed.exit_status import (
    FAILED,
    INTERRUPTED,
    MISTAKE,
    STOPPED,
    StoppedError,
)
from megatron_gptx.distributed.interface import choose_interface
from megatron_gptx.distributed.lifetime import end_with_parent
from megatron_gptx.distributed.log import redirect_output
from megatron_gptx.distributed.ownership import hold_until_the_end
from megatron_gptx.distributed.run_files import (
    finished_marker,
    first_to_fail,
    leave_marker,
    stopped_marker,
)
from megatron_gptx.distributed.watchdog import START_SECONDS, Watchdog

# How long a rank that lost a peer waits for the launcher, which ends every rank once it has seen
# the peer's exit status: the peer's own message is then the only one on the screen.
GRACE_SECONDS = 5.0


# What the launchers that DeepSpeed's runner can hand over to call a rank's numbers.
_RANK_VARIABLES = {
    "RANK": ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK"),
    "LOCAL_RANK": (
        *("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
        *("MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    ),
    "WORLD_SIZE": ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE"),
}


class Process(NamedTuple):
    """One rank."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    console: TextIO
    watch: Watchdog


def name_rank(variables: MutableMapping[str, str], launch: LaunchConfig) -> None:
    """Fill in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where they are missing.

    DeepSpeed's own launcher sets them; SLURM and the MPIs have names of their own for the first
    three, and none for the others.

    Raises:
        UserError: this process was not started as a rank.
    """
    for name, others in _RANK_VARIABLES.items():
        found = [variables[key] for key in (name, *others) if key in variables]
        if not found:
            raise UserError(f"{name} is not set: ranks are started by gptx train CONFIG")
        variables[name] = found[0]
    if launch.master_addr is not None:
        variables.setdefault("MASTER_ADDR", launch.master_addr)
    if launch.master_port is not None:
        variables.setdefault("MASTER_PORT", str(launch.master_port))


def run_worker(work: Callable[[Process], None], *, run_dir: Path, launch: LaunchConfig) -> None:
    """Join the process group, do the work, and end this process with an honest status.

    Everything printed here or by DeepSpeed goes to RUN_DIR/logs/rank-N.log. The first rank that
    fails shows why on the console: a user's mistake as one message and status 2, anything else
    with the place of its traceback and status 1. Where all ranks raise StoppedError, rank 0 leaves
    its text for the launcher, and all of them leave together.
    """
    # A rank waits inside collectives, where Python answers no other signal.
    end_with_parent(signal.SIGKILL)
    name_rank(os.environ, launch)
    rank = int(os.environ["RANK"])
    log_path = run_dir / "logs" / f"rank-{rank}.log"
    console = redirect_output(log_path)
    watch = Watchdog(
        rank,
        int(os.environ["WORLD_SIZE"]),
        run_dir=run_dir,
        timeout_seconds=launch.timeout_seconds,
    )
    watch.start(console)
    try:
        if rank == 0:  # whom no other rank outlives for long
            hold_until_the_end(run_dir)
        process = _join(console, watch)
        stopped = _do(work, process)
        watch.begin("end", 0)
        if rank == 0 and stopped:
            leave_marker(stopped_marker(run_dir), stopped)
        # The first rank that leaves makes the launcher of its node end the others.
        dist.barrier()
        if rank == 0 and not stopped:
            leave_marker(finished_marker(run_dir), "")
        dist.destroy_process_group()
        watch.stop()
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except BaseException as error:
        watch.stop()
        # From now on nothing is left to save: whoever sends a signal wants this rank gone.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        traceback.print_exc()
        sys.stderr.flush()
        if lost_a_peer(error):
            time.sleep(GRACE_SECONDS)
        status = MISTAKE if isinstance(error, UserError) else FAILED
        if first_to_fail(run_dir, status):
            where = "" if isinstance(error, UserError) else f" (traceback in {log_path})"
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            console.write(f"\nerror on rank {rank}{where}: {kind}{error}\n")
        _leave(status)
    if stopped:
        _leave(STOPPED)


def _do(work: Callable[[Process], None], process: Process) -> str | None:
    try:
        work(process)
    except StoppedError as stopped:
        return str(stopped)
    return None


def _join(console: TextIO, watch: Watchdog) -> Process:
    # Importing DeepSpeed takes seconds and prints; only ranks pay for it, into their log.
    import deepspeed
    import deepspeed.ops

    # Only inference uses the one op that is looked up here; building it takes a minute, and every
    # launch would leave 69 MB per rank in /dev/shm. Returning {} also avoids DeepSpeed's compiler
    # probes. If a rank is killed during a probe, a temporary folder would remain.
    deepspeed.ops.__compatible_ops__ = {}
    _import_muon()
    explain_build_locks(partial(_note, console))
    choose_interface(os.environ)
    local_rank = int(os.environ["LOCAL_RANK"])
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        device, backend = torch.device("cpu"), "gloo"
    else:
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    # Longer than any phase: the watchdog ends a run that hangs, and says more about it. DeepSpeed
    # makes groups without a timeout of their own, which then take these defaults.
    longest = timedelta(seconds=max(START_SECONDS, watch.timeout_seconds) + 120)
    distributed_c10d.default_pg_timeout = longest
    distributed_c10d.default_pg_nccl_timeout = longest
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=longest, auto_mpi_discovery=True)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"launch.master_port: port {os.environ['MASTER_PORT']} of this node, at which the "
            "ranks were to meet, is used by another program; choose another one, or null, which "
            "finds a free one"
        ) from error
    return Process(dist.get_rank(), dist.get_world_size(), local_rank, device, console, watch)


def _import_muon() -> None:
    # Each ZeRO stage imports this optimizer to see whether it was chosen, and it imports PyTorch's
    # compiler, which takes a second, unless compiling is switched off.
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _note(console: TextIO, text: str) -> None:
    """Leave a line in this rank's log, and on the console if it is the first rank of its node."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    if os.environ["LOCAL_RANK"] == "0":
        console.write(f"{text}\n")


def lost_a_peer(error: BaseException) -> bool:
    """Return whether an error is what a collective says when another rank has ended."""
    text = str(error).lower()
    # A system's error is about a file or a program; those of collectives are no such.
    return isinstance(error, dist.DistError) or (
        not isinstance(error, OSError)
        and any(
            words in text
            for words in ("connection closed by peer", "connection reset", "broken pipe")
        )
    )


def _leave(status: int) -> None:
    # A normal exit would wait for peers inside the process group's destructor.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
