"""No death of a worker goes unnoticed, and none survives."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.worker_pool import WorkerPool


class Work:
    """Adds its state to a unit; some units go wrong."""

    def __init__(self, state):
        self.state = state

    def __call__(self, unit):
        if unit == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == "exit":
            os._exit(3)
        if unit == "user":
            raise UserError("line 7 is bad")
        if unit == "disk":
            raise OSError(28, "No space left on device", "part")
        if unit == "bug":
            raise KeyError("x")
        return unit + self.state


class Touch(Work):
    """Makes a file in a folder."""

    def __call__(self, unit):
        (self.state / unit).touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_unit_gives_its_result(workers):
    with WorkerPool(Work, 100, workers) as pool:
        results = dict(pool.run(range(7)))
    assert results == {i: i + 100 for i in range(7)}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("length", [75, 76, 200])
def test_workers_start_however_long_the_name_of_the_temporary_folder_is(length):
    # A socket's name has 107 bytes at most, and multiprocessing adds 32 to the folder's.
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    folder = short / ("x" * (length - len(str(short)) - 1))
    folder.mkdir()
    code = """
import operator
from megatron_gptx.corpus.worker_pool import WorkerPool
with WorkerPool(operator.itemgetter, 0, 2) as pool:
    print(sorted(result for _, result in pool.run(["abc", "def"])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    left = list(folder.iterdir())
    shutil.rmtree(short)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a', 'd']\n", "")
    assert left == []


@pytest.mark.parametrize(
    ("unit", "error", "message"),
    [
        ("die", UserError, "was killed by signal 9 while it worked on die; out of memory"),
        ("exit", UserError, "ended with status 3 while it worked on exit"),
        ("user", UserError, "line 7 is bad"),
        ("disk", UserError, "^part: No space left on device$"),
        ("bug", RuntimeError, "KeyError: 'x'"),
    ],
)
def test_a_worker_that_fails_ends_the_run_at_once(unit, error, message):
    with pytest.raises(error, match=message), WorkerPool(Work, 0, 2) as pool:
        list(pool.run([1, unit, 2, 3]))
    assert not multiprocessing.active_children()


def test_workers_begin_before_the_first_result_is_taken(tmp_path):
    with WorkerPool(Touch, tmp_path, 2) as pool:
        results = pool.run(["a", "b"])
        deadline = time.monotonic() + 30
        while {path.name for path in tmp_path.iterdir()} != {"a", "b"}:
            assert time.monotonic() < deadline, "waited for 30 seconds"
        assert dict(results) == {0: None, 1: None}


def test_no_worker_survives_a_run_that_is_given_up():
    with WorkerPool(Work, 0, 2) as pool:
        next(pool.run(range(100)))
    assert not multiprocessing.active_children()
