"""The progress line."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from megatron_gptx.distributed.log import lossy
from megatron_gptx.training.progress_line import Monitor, duration
from megatron_gptx.training.train_state import TrainingState


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_the_last_step_is_always_shown():
    console = io.StringIO()
    monitor = Monitor(console, total_steps=2, visible=True)
    monitor.start(TrainingState())
    for step in (1, 2):
        state = TrainingState(step=step, tokens=100 * step)
        monitor.show(state, 1.25, *monitor.step(state))
    assert "step 2/2  loss 1.2500" in console.getvalue()
    assert "0:00 left" in console.getvalue()


def test_a_terminal_line_is_redrawn_and_a_message_gets_its_own():
    console = Terminal()
    monitor = Monitor(console, total_steps=1, visible=True)
    monitor.start(TrainingState())
    state = TrainingState(step=1, tokens=100)
    monitor.show(state, 1.0, *monitor.step(state))
    monitor.say("saved")
    assert console.getvalue().startswith("\r")
    assert console.getvalue().endswith("\nsaved\n")


@pytest.mark.parametrize(("columns", "most"), [(20, 19), (80, 79), (0, 1000)])
def test_the_live_line_fits_the_terminal(columns, most):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monitor = Monitor(lossy(slave), total_steps=1_000_000, visible=True)
    monitor.start(TrainingState())
    state = TrainingState(step=999_999, tokens=10**9)
    monitor.show(state, 1.25, *monitor.step(state))
    drawn = os.read(master, 1000).decode()
    os.close(slave)
    os.close(master)
    assert drawn.startswith("\r\033[Kstep 999999/1000000"[: 4 + most])
    assert len(drawn.removeprefix("\r\033[K")) <= most
    assert columns or drawn.endswith(" left")


def test_other_ranks_are_silent():
    console = io.StringIO()
    monitor = Monitor(console, total_steps=1, visible=False)
    monitor.start(TrainingState())
    monitor.show(TrainingState(step=1), 1.0, 2.0, 3.0)
    monitor.say("saved")
    assert console.getvalue() == ""


def test_waiting_is_a_share_of_the_steps_alone(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 12.0])
    monkeypatch.setattr("megatron_gptx.training.progress_line.time.monotonic", lambda: next(clock))
    monitor = Monitor(io.StringIO(), total_steps=2, visible=False)
    monitor.start(TrainingState())
    monitor.wait(0.5)
    monitor.step(TrainingState(step=1))
    monitor.start(TrainingState(step=1))  # eight seconds of something else
    monitor.wait(0.1)
    monitor.step(TrainingState(step=2))
    assert monitor.waiting == pytest.approx(0.6 / 4)
