"""A started command ends when it should, and its end is told truthfully."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_gptx.launcher.processes import explain, run, status_of

# Runs a command that leaves its process id in a file and then waits.
RUN = """
import os, sys
from pathlib import Path
from megatron_gptx.launcher.processes import run
sys.exit(run(sys.argv[1:], environment=dict(os.environ), folder=Path.cwd()))
"""
WAIT = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
FINISH = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path('pid').write_text('0')
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    return tmp_path


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, sys.executable, "-c", code],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    return process


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited ten seconds in vain")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(2)", 2),
        ("raise SystemExit(-9)", 137),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_status_of_a_command_is_passed_on(tmp_path, code, status):
    command = [sys.executable, "-c", code]
    assert run(command, environment=dict(os.environ), folder=tmp_path) == status


def test_running_a_command_leaves_the_handlers_of_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(["true"], environment=dict(os.environ), folder=tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_and_shows_in_the_status(folder, signum, status):
    process = start(folder, WAIT)
    process.send_signal(signum)
    assert process.wait(10) == status
    assert not is_alive(int((folder / "pid").read_text()))
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_ctrl_c_in_a_terminal_shows_no_traceback(folder):
    process = start(folder, WAIT)
    os.kill(int((folder / "pid").read_text()), signal.SIGINT)  # a terminal signals every process
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_command_that_finishes_in_order_after_a_signal_has_succeeded(folder):
    process = start(folder, FINISH)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_a_killed_launcher_takes_the_command_with_it(folder):
    process = start(folder, WAIT)
    process.kill()
    process.wait(10)
    wait_for(lambda: not is_alive(int((folder / "pid").read_text())))


@pytest.mark.parametrize(
    ("returncode", "status"),
    [(0, 0), (1, 1), (2, 2), (-9, 137), (-15, 143), (-9 % 256, 137), (-15 % 256, 143), (130, 130)],
)
def test_a_signals_number_is_read_from_either_form_of_a_return_code(returncode, status):
    assert status_of(returncode) == status


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_a_process_explains_itself_is_not_explained_again(capsys, status):
    explain(status, Path("logs"))
    assert capsys.readouterr().err == ""


def test_a_kill_is_explained_once_with_its_likely_cause_and_the_logs(capsys):
    explain(137, Path("run/logs"))
    assert capsys.readouterr().err == (
        "error: a process of this run was ended by SIGKILL; the machine may have run out of "
        "memory (logs: run/logs)\n"
    )


def test_any_status_can_be_explained(capsys):
    for status in range(256):
        explain(status_of(status))
    assert "SIGSEGV" in capsys.readouterr().err
