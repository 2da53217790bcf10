"""What a rank makes of a signal to it, and of a request in its run folder."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.distributed.exit_status import FAILED, INTERRUPTED, STOPPED

ROOT = Path(__file__).resolve().parents[2]
# A process of its own, because it keeps its handlers of signals for good.
RANK = """
import os, pathlib, sys, time
from megatron_gptx.training.stop_signals import Stop
run_dir, state, *signals = sys.argv[1:]
stop = Stop(pathlib.Path(run_dir))
if state != "starts":
    stop.begin()
asked = pathlib.Path(run_dir, "logs", "asked")
if asked.exists():  # not before `begin`: the rank would leave at once
    asked.rename(asked.with_name(".stop"))
for signum in signals:
    os.kill(os.getpid(), int(signum))
    time.sleep(0.05)  # else one that is sent twice may arrive once
while state == "hangs" or not stop.reason:
    time.sleep(0.01)
print(stop.reason)
"""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture
def logs(tmp_path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def rank(logs: Path, state: str, *signals: int) -> tuple[int, str]:
    """Return the status of a rank that got some signals, and why it would stop."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RANK,
            str(logs.parent),
            state,
            *(str(int(each)) for each in signals),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_a_reason_to_stop_after_the_step(logs, signum):
    assert rank(logs, "trains", signum) == (0, signum.name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((signum.name, signum.name) for signum in SIGNALS),
        ("training.time_limit_minutes", "training.time_limit_minutes"),
        ("", "logs/.stop"),
        ("please", "logs/.stop"),
    ],
)
def test_a_request_is_a_reason_to_stop_after_the_step(logs, text, reason):
    (logs / "asked").write_text(text)
    assert rank(logs, "trains") == (0, reason)


def test_a_rank_that_has_nothing_to_lose_leaves_at_once_and_says_why(logs):
    assert rank(logs, "starts", signal.SIGTERM) == (STOPPED, "")
    assert (logs / ".stopped").read_text().startswith("stopped by SIGTERM before a step was taken")


@pytest.mark.parametrize("state", ["starts", "hangs"])
def test_a_rank_whose_peer_has_failed_leaves_as_one_that_failed(logs, state):
    (logs / ".failed").touch()
    assert rank(logs, state, signal.SIGTERM) == (FAILED, "")
    assert not (logs / ".stopped").exists()


def test_a_second_ctrl_c_ends_a_rank_at_once(logs):
    assert rank(logs, "hangs", signal.SIGINT, signal.SIGINT) == (INTERRUPTED, "")


def test_a_request_in_a_hurry_ends_a_rank_at_once(logs):
    (logs / ".stop").write_text("at once")
    assert rank(logs, "hangs") == (INTERRUPTED, "")
