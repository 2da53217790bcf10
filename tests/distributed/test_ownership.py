"""A run folder belongs to one launch and its ranks."""

import os
import subprocess
import sys

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.distributed.ownership import let_ranks_in, take_over

RANK = """
import pathlib, sys
from megatron_gptx.distributed.ownership import hold_until_the_end
hold_until_the_end(pathlib.Path(sys.argv[1]))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def rank(tmp_path):
    """A process that holds the folder as a rank does, until its input ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RANK, str(tmp_path)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_belongs_to_one_launch_at_a_time(tmp_path, shared):
    first = take_over(tmp_path)
    if shared:
        let_ranks_in(first, tmp_path)
    with pytest.raises(UserError, match=rf"in use by another launch \(process {os.getpid()} of"):
        take_over(tmp_path)
    first.close()
    take_over(tmp_path).close()


def test_a_launch_lets_its_ranks_in_when_nothing_of_earlier_ones_is_left(tmp_path, rank):
    with take_over(tmp_path) as hold:
        started = rank()
        let_ranks_in(hold, tmp_path)
        assert started.stdout.readline() == b"holds\n"


def test_a_rank_keeps_new_launches_out_when_its_launcher_is_gone(tmp_path, rank):
    with take_over(tmp_path) as hold:
        let_ranks_in(hold, tmp_path)
        started = rank()
        assert started.stdout.readline() == b"holds\n"
    with pytest.raises(UserError, match="or by ranks that it left"):
        take_over(tmp_path)
    started.kill()
    started.communicate()
    take_over(tmp_path).close()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_that_cannot_be_locked_is_named(tmp_path, kind):
    if kind == "file":
        (tmp_path / "logs").touch()
    else:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"output.run_dir {tmp_path} cannot be used: [A-Z]"):
        take_over(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
