"""What tests of many files share."""

import signal
from pathlib import Path

import pytest

from tests.runs import write_corpus

# A shell starts background jobs with SIGINT ignored, nohup adds SIGHUP, and every child inherits
# that. Tests that interrupt a program are about one that was started in a terminal.
for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(signum) is signal.SIG_IGN:
        interrupts = signum == signal.SIGINT
        signal.signal(signum, signal.default_int_handler if interrupts else signal.SIG_DFL)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the datasets that `tiny_config` names; nobody writes into it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder
