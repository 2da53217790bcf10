"""What the progress line says, and where it is shown."""

import io
import sys

from megatron_gptx.corpus.progress_line import Progress


def test_the_line_has_share_speeds_and_the_time_left():
    progress = Progress(100_000_000)
    progress.add(60_000_000, 10_000_000)
    assert progress.line(2) == " 60.0%  30.0 MB/s  5.00 M tokens/s  0:00:01 left"


def test_a_resumed_run_counts_its_own_speed_only():
    progress = Progress(100_000_000_000, 50_000_000_000)
    progress.add(10_000_000, 0)
    assert progress.line(1) == " 50.0%  10.0 MB/s  0.00 M tokens/s  1:23:19 left"
    assert Progress(0).line(0) == "  0.0%  0.0 MB/s  0.00 M tokens/s  0:00:00 left"


def test_it_is_shown_on_a_terminal_and_cleared(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(100) as progress:
        progress.add(40, 1)
        shown = terminal.getvalue()
        assert shown.startswith("\r 40.0%  ")
        progress.add(10, 1)  # too soon
        assert terminal.getvalue() == shown
    assert terminal.getvalue() == f"{shown}\r{' ' * (len(shown) - 1)}\r"


def test_nothing_is_written_to_a_file(capsys):
    with Progress(100) as progress:
        progress.add(40, 1)
    assert capsys.readouterr() == ("", "")
