"""A lock that a killed process left in an extension's folder stops nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.distributed.build_lock import explain_build_locks
from tests.runs import start_ranks

ROOT = Path(__file__).resolve().parents[2]
BUILDER = """
import sys, time
from torch.utils.file_baton import FileBaton
if sys.argv[2] == "ours":
    from megatron_gptx.distributed.build_lock import explain_build_locks
    explain_build_locks(print)
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def lines(monkeypatch):
    """Explain locks in this process until the test ends; return what is said."""
    monkeypatch.setattr(FileBaton, "try_acquire", FileBaton.try_acquire)
    monkeypatch.setattr(FileBaton, "wait", FileBaton.wait)
    said: list[str] = []
    explain_build_locks(said.append)
    return said


@pytest.fixture
def builder(tmp_path):
    """Return what starts a process that builds, with PyTorch's own lock or with ours."""
    started = []

    def start(whose: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / "lock"), whose],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "building\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def join_behind_a_lock(run_dir: Path, lock: str) -> None:
    from megatron_gptx.distributed.process import run_worker

    def work(process) -> None:
        baton = FileBaton(lock)
        if not baton.try_acquire():
            baton.wait()
            return
        time.sleep(1.5)  # the build
        baton.release()

    run_worker(work, run_dir=run_dir, launch=LaunchConfig(timeout_seconds=20))


@pytest.mark.parametrize("whose", ["torch's", "ours"])
def test_the_lock_of_a_killed_process_is_removed_and_explained(tmp_path, lines, builder, whose):
    lock = tmp_path / "lock"
    process = builder(whose)
    assert not FileBaton(str(lock)).try_acquire()
    assert lines == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.exists()
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    assert lines == [f"removed {lock}: the process that was building there is gone"]
    assert not FileBaton(str(lock)).try_acquire()
    baton.release()
    assert not lock.exists()


def test_who_waits_says_so_and_does_not_outlast_the_builder(tmp_path, lines, builder):
    process = builder("ours")
    baton = FileBaton(str(tmp_path / "lock"))
    assert not baton.try_acquire()
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match=r"the process that was building in .* is gone"):
        baton.wait()
    assert lines[0].startswith(f"waiting for the process that builds in {tmp_path}")


def test_the_lock_of_another_machine_is_left_alone(tmp_path, lines):
    (tmp_path / "lock").write_text("another-machine")
    assert not FileBaton(str(tmp_path / "lock")).try_acquire()
    assert lines == []


def test_ranks_that_meet_a_dead_lock_build_once_and_go_on(tmp_path):
    lock, screen = tmp_path / "lock", tmp_path / "screen"
    lock.touch()
    assert start_ranks(join_behind_a_lock, 2, tmp_path, str(lock), screen=screen) == [0, 0]
    logs = [(tmp_path / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert sum("is gone" in log for log in logs) == 1
    assert sum("waiting for the process that builds" in log for log in logs) == 1
    assert not lock.exists()
