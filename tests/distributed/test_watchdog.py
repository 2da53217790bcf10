"""What a watchdog says about a run that hangs, and when it strikes."""

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.distributed.exit_status import HUNG
from megatron_gptx.distributed.watchdog import Beat, Watchdog, describe
from tests.runs import start_ranks

WAITING = Beat(9, "step", 7, "all_reduce", "engine.py:126 count_labels")
READING = Beat(9, "data", 7, None, "loader.py:80 take")


def watched(run_dir: Path, work: str, timeout_seconds: int) -> None:
    """Run a piece of work, named below, as this rank."""
    from megatron_gptx.distributed import process

    launch = LaunchConfig(timeout_seconds=timeout_seconds)
    process.run_worker(globals()[work], run_dir=run_dir, launch=launch)


def hold_the_interpreter(process) -> None:
    process.watch.begin("step", 3)
    if process.rank == process.world_size - 1:
        ctypes.PyDLL(None).sleep(1000)
    import torch.distributed as dist

    dist.barrier()


def keep_moving(process) -> None:
    for step in range(20):
        process.watch.begin("step", step)
        time.sleep(0.2)


def be_stopped_for_a_while(process) -> None:
    process.watch.begin("step", 0)
    if os.fork() == 0:
        time.sleep(3)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)


def look_at_timeouts(process) -> None:
    import deepspeed.comm
    from torch.distributed import distributed_c10d

    group = deepspeed.comm.new_group([0, 1])
    for each in (distributed_c10d._get_default_group(), group):
        options = each._get_backend(process.device).options
        assert options._timeout.total_seconds() > 3000, options._timeout


def run(tmp_path: Path, work: str, *, timeout_seconds: int, ranks: int = 2) -> list[int | None]:
    screen = tmp_path / "screen"
    return start_ranks(watched, ranks, tmp_path, work, timeout_seconds, screen=screen)


def test_a_rank_that_lets_no_thread_run_is_ended_and_named_by_its_peers(tmp_path):
    assert HUNG in run(tmp_path, "hold_the_interpreter", timeout_seconds=2)
    said = (tmp_path / "screen").read_text()
    assert "rank 1 is silent (last in " in said
    assert "rank 0 is waiting in barrier (phase step, step 3, " in said


def test_a_rank_alone_that_lets_no_thread_run_is_ended_with_its_stack(tmp_path):
    assert run(tmp_path, "hold_the_interpreter", timeout_seconds=2, ranks=1) == [1]
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "Timeout (" in log
    assert "in hold_the_interpreter" in log


def test_phases_that_follow_each_other_may_last_longer_together_than_one(tmp_path):
    assert run(tmp_path, "keep_moving", timeout_seconds=2) == [0, 0]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "rank-0.log",
        "rank-1.log",
        ".finished",
        ".lock",
    }


def test_the_time_in_which_a_process_is_stopped_does_not_count(tmp_path):
    assert run(tmp_path, "be_stopped_for_a_while", timeout_seconds=2, ranks=1) == [0]


def test_no_group_gives_up_before_the_watchdog(tmp_path):
    assert run(tmp_path, "look_at_timeouts", timeout_seconds=3000) == [0, 0]


def test_starting_may_take_longer_than_a_step(tmp_path):
    watch = Watchdog(0, 1, run_dir=tmp_path, timeout_seconds=20)
    assert watch.limit() == 1800
    watch.begin("step", 0)
    assert watch.limit() == 20


HELD = "waiting in all_reduce (phase step, step 7, engine.py:126 count_labels)"
BUSY = "in loader.py:80 take (phase data, step 7), in no collective"
GONE = "silent (last in {}): stopped, or the machine is gone"


@pytest.mark.parametrize(
    ("beats", "alive", "clauses"),
    [
        (
            {0: WAITING, 1: WAITING},
            {0},
            [f"rank 1 is {GONE.format('phase step, step 7')}", f"rank 0 is {HELD}"],
        ),
        (
            {0: WAITING, 1: READING, 2: WAITING},
            {0, 1, 2},
            [f"rank 1 is {BUSY}", f"ranks 0, 2 are {HELD}"],
        ),
        (
            {
                0: WAITING._replace(host="node1"),
                1: WAITING._replace(host="node2"),
                2: READING._replace(host="node2"),
            },
            {0, 2},
            [
                f"rank 1 (node2) is {GONE.format('phase step, step 7')}",
                f"rank 2 (node2) is {BUSY}",
                f"rank 0 (node1) is {HELD}",
            ],
        ),
        (
            {rank: None if rank else READING for rank in range(12)},
            {0},
            [
                f"ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more are {GONE.format('no phase')}",
                f"rank 0 is {BUSY}",
            ],
        ),
    ],
)
def test_the_ranks_that_hold_others_up_are_named_first(beats, alive, clauses):
    assert describe(beats, alive) == "; ".join(clauses)
