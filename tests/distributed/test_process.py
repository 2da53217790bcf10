"""Ranks that end well, and ranks that fail in every way: what people see, and what is left."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.distributed.interface import interface_to
from megatron_gptx.distributed.process import lost_a_peer
from megatron_gptx.distributed.run_files import first_failure, first_to_fail
from tests.runs import start_ranks


class Outcome:
    """How the ranks of a launch ended, and what they left."""

    def __init__(self, run_dir: Path, work: str) -> None:
        screen = run_dir / "screen"
        self.statuses = start_ranks(join_and_do, 2, run_dir, work, screen=screen)
        self.screen = screen.read_text()
        self.logs = [(run_dir / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]


def join_and_do(run_dir: Path, work: str) -> None:
    """Run a piece of work, named below, as this rank."""
    from megatron_gptx.distributed import process

    process.run_worker(globals()[work], run_dir=run_dir, launch=LaunchConfig(timeout_seconds=30))


def join_beside_a_compiler(run_dir: Path, compiler: Path) -> None:
    os.environ["CC"] = str(compiler)
    join_and_do(run_dir, "wait_for_peers")


def join_beside_another_host(run_dir: Path) -> None:
    os.environ["GPTX_HOSTS"] = "192.0.2.1"
    join_and_do(run_dir, "name_the_interface")


def name_the_interface(process) -> None:
    process.console.write(f"gloo takes {os.environ.get('GLOO_SOCKET_IFNAME')}\n")


def talk(process) -> None:
    sys.stdout.write(f"rank {process.rank} of {process.world_size} prints\n")
    subprocess.run(["echo", "its child prints"], check=True)
    if process.rank == 0:
        process.console.write("a word to people\n")


def meet_the_same_mistake(process) -> None:
    from megatron_gptx.config.errors import UserError

    raise UserError("the file is not there; make it")


def one_makes_a_mistake(process) -> None:
    if process.rank == 1:
        meet_the_same_mistake(process)
    wait_for_peers(process)


def one_breaks(process) -> None:
    if process.rank == 1:
        raise ValueError("that was unexpected")
    wait_for_peers(process)


def one_is_killed(process) -> None:
    if process.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_peers(process)


def one_is_killed_and_nobody_tells(process) -> None:
    """Rank 1 vanishes with status 0, so that nothing ends rank 0."""
    from megatron_gptx.distributed import process as module

    module.GRACE_SECONDS = 0.1
    if process.rank == 1:
        os._exit(0)
    wait_for_peers(process)


def interrupted(process) -> None:
    raise KeyboardInterrupt


def wait_for_peers(process) -> None:
    import torch.distributed as dist

    dist.barrier()


def ends(statuses: list[int | None], status: int) -> bool:
    """Tell whether ranks ended with a status; on a busy machine a late one is ended by another."""
    return status in statuses and set(statuses) <= {status, -signal.SIGTERM}


def test_ranks_that_do_their_work_leave_with_status_0_and_a_log_each(tmp_path):
    outcome = Outcome(tmp_path, "talk")
    assert outcome.statuses == [0, 0]
    assert outcome.screen == "a word to people\n"
    for rank, log in enumerate(outcome.logs):
        assert f"rank {rank} of 2 prints" in log
        assert "its child prints" in log


def test_a_mistake_that_all_ranks_meet_is_shown_once(tmp_path):
    outcome = Outcome(tmp_path, "meet_the_same_mistake")
    assert ends(outcome.statuses, 2)
    assert outcome.screen.count("the file is not there; make it") == 1
    assert "Traceback" not in outcome.screen


def test_a_mistake_that_one_rank_meets_is_all_that_is_shown(tmp_path):
    outcome = Outcome(tmp_path, "one_makes_a_mistake")
    assert outcome.statuses == [-signal.SIGTERM, 2]
    assert outcome.screen == "\nerror on rank 1: the file is not there; make it\n"


def test_an_internal_error_is_named_with_the_place_of_its_traceback(tmp_path):
    outcome = Outcome(tmp_path, "one_breaks")
    assert outcome.statuses == [-signal.SIGTERM, 1]
    log = tmp_path / "logs" / "rank-1.log"
    assert outcome.screen == (
        f"\nerror on rank 1 (traceback in {log}): ValueError: that was unexpected\n"
    )
    assert "Traceback" in outcome.logs[1]


def test_the_peer_of_a_killed_rank_leaves_the_explanation_to_the_launcher(tmp_path):
    outcome = Outcome(tmp_path, "one_is_killed")
    assert outcome.statuses == [-signal.SIGTERM, -signal.SIGKILL]
    assert outcome.screen == ""
    assert "Traceback" in outcome.logs[0]


def test_the_peer_of_a_rank_that_vanished_says_so_in_the_end(tmp_path):
    outcome = Outcome(tmp_path, "one_is_killed_and_nobody_tells")
    assert outcome.statuses == [1, 0]
    assert outcome.screen.count("error on rank 0 (traceback in ") == 1


def test_an_interrupted_rank_leaves_without_a_word(tmp_path):
    outcome = Outcome(tmp_path, "interrupted")
    assert ends(outcome.statuses, 130)
    assert outcome.screen == ""


def test_only_one_rank_is_the_first_to_fail(tmp_path):
    (tmp_path / "logs").mkdir()
    assert [first_to_fail(tmp_path, status) for status in (76, 1, 2)] == [True, False, False]
    assert first_failure(tmp_path) == 76


def test_a_rank_that_cannot_leave_a_mark_speaks_up(tmp_path):
    assert first_to_fail(tmp_path / "nowhere", 1)
    assert first_failure(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "started",
    [
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "head"},
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"},
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "4",
        },
        {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4"},
    ],
)
def test_a_rank_knows_its_numbers_whatever_started_it(started):
    from megatron_gptx.distributed.process import name_rank

    variables = dict(started)
    name_rank(variables, LaunchConfig(master_addr="head", master_port=1234))
    named = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    assert variables.items() >= {**named, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}.items()


def test_a_process_that_is_no_rank_is_told_so():
    from megatron_gptx.distributed.process import name_rank

    with pytest.raises(UserError, match=r"RANK is not set: ranks are started by gptx train"):
        name_rank({}, LaunchConfig())


def test_ranks_join_without_running_a_compiler(tmp_path):
    compiler, ran = tmp_path / "compiler", tmp_path / "ran"
    compiler.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    compiler.chmod(0o700)
    assert start_ranks(join_beside_a_compiler, 2, tmp_path, compiler) == [0, 0]
    assert not ran.exists()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234"), True),
        (RuntimeError("writev: Broken pipe"), True),
        (BrokenPipeError(32, "Broken pipe"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (ValueError("that was unexpected"), False),
    ],
)
def test_only_an_error_of_a_collective_means_a_lost_peer(error, lost):
    assert lost_a_peer(error) == lost


def test_a_port_that_another_program_has_taken_meanwhile_is_named(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr("tests.runs.free_port", lambda: port)
        (status,) = start_ranks(join_and_do, 1, tmp_path, "talk", screen=tmp_path / "screen")
    assert status == 2
    said = (tmp_path / "screen").read_text()
    assert f"error on rank 0: launch.master_port: port {port} of this node" in said
    assert "EADDRINUSE" not in said


def test_a_rank_meets_the_others_at_the_interface_that_leads_to_them(tmp_path):
    screen = tmp_path / "screen"
    assert start_ranks(join_beside_another_host, 1, tmp_path, screen=screen) == [0]
    assert screen.read_text() == f"gloo takes {interface_to(['192.0.2.1'])}\n"
