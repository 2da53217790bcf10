"""Runs of `deepy.py` under injected faults: how they end, what they say, and what they leave."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")
MARK = "GPTX_TEST_RUN"


class Outcome(NamedTuple):
    """How a launch ended; `seconds` passed between the fault and the end."""

    status: int
    screen: str
    seconds: float
    logs: list[str]
    left: list[str]


def launch(config: Config, *, fault: str) -> Outcome:
    """Train a configuration through `deepy.py`, a fault in its way, until it ends by itself."""
    run_dir = Path(config.output.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config_in.yml").write_text(dump(config))
    mark, shared, struck = uuid.uuid4().hex, set(SHARED_MEMORY.iterdir()), run_dir / "struck"
    with (run_dir / "screen").open("w") as screen:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "deepy.py"), "train.py", str(run_dir / "config_in.yml")],
            env={**os.environ, MARK: mark, "GPTX_FAULT": f"{fault}:once={struck}"},
            stdout=screen,
            stderr=screen,
        )
        status = process.wait(timeout=240)
    ended = time.time()
    paths = sorted((run_dir / "logs").glob("rank-*.log"))
    left = [str(path) for path in set(SHARED_MEMORY.iterdir()) - shared]
    left += [f"process {pid}" for pid in _processes(mark)]
    return Outcome(
        status,
        (run_dir / "screen").read_text(),
        ended - struck.stat().st_mtime,
        [path.read_text() for path in paths],
        left,
    )


def _processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in variables:
            found.append(int(folder.name))
    return found
