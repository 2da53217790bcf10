"""The tests pass in the background, too: `nohup make test &`."""

import signal
import subprocess
import sys

from tests.launches import ROOT

CHILD = (
    "import signal; print([s for s in (1, 2, 3, 10, 15) if signal.getsignal(s) == signal.SIG_IGN])"
)
PROGRAM = f"""
import subprocess, sys
import tests.conftest
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


def test_programs_under_test_answer_signals_that_the_test_run_itself_ignores():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        preexec_fn=ignore_signals,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
