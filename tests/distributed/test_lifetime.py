"""A process ends with its parent, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A parent that starts a child and waits; the child holds the write end of our pipe while it lives.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
CHILD = """
import signal, time
from megatron_gptx.distributed.lifetime import end_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parent(signal.SIGKILL)
print("ready", flush=True)
time.sleep(5)
print("survived", flush=True)
"""
ORPHAN = """
import os, signal
from megatron_gptx.distributed.lifetime import end_with_parent
end_with_parent(signal.SIGTERM, parent=os.getppid() + {error})
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(signum):
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        os.kill(parent.pid, signum)
        # The end of the file comes when the last process that could write is gone.
        assert parent.stdout.read() == ""


@pytest.mark.parametrize(("error", "status"), [(0, 0), (1, -signal.SIGTERM)])
def test_a_process_that_is_an_orphan_already_ends_at_once(error, status):
    done = subprocess.run([sys.executable, "-c", ORPHAN.format(error=error)], check=False)
    assert done.returncode == status
