"""Launches as a person makes them: `deepy.py` as a process, with everything that it starts."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.config.yaml_writer import dump
from tests.runs import tiny_config, write_corpus

ROOT = Path(__file__).resolve().parents[1]
MARK = "GPTX_TEST_RUN"
SHARED_MEMORY = Path("/dev/shm")


class Launch(NamedTuple):
    """A finished launch."""

    status: int
    shown: str
    said: str


class Place:
    """A folder with data and a configuration, in which launches can be told from other programs."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.shared_memory = set(SHARED_MEMORY.iterdir())
        write_corpus(folder)
        options = {"parallel__pipeline_stages": 2, "training__steps": 3, **options}
        config = tiny_config(folder, folder / "run", **options)
        self.config_file = folder / "tiny.yml"
        self.config_file.write_text(dump(config))

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "deepy.py"), *words],
            cwd=self.folder,
            env={**os.environ, MARK: self.mark, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, script: str, *words: str, **variables: str) -> Launch:
        process = self.start(script, "tiny.yml", *words, **variables)
        shown, said = process.communicate(timeout=120)
        return Launch(process.returncode, shown, said)

    def processes(self, variable: str = "") -> list[int]:
        """Return the living processes of all launches, or those with a variable set as given."""
        wanted = {f"{MARK}={self.mark}".encode(), variable.encode()} - {b""}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if wanted <= set(variables) and state != "Z":
                found.append(int(folder.name))
        return found

    def is_empty(self) -> bool:
        return not self.processes()

    def left(self) -> list[str]:
        """Return what launches have left behind: processes, and names in shared memory."""
        names = set(SHARED_MEMORY.iterdir()) - self.shared_memory
        return [f"process {pid}" for pid in self.processes()] + sorted(map(str, names))

    def clear(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def has_rows(metrics: Path) -> Callable[[], bool]:
    return lambda: metrics.exists() and metrics.stat().st_size > 0
