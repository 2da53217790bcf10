"""The attention benchmark checks what it times, and writes down what it shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.ops.kernels import library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


def test_every_claim_has_its_figures(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "attention_cpu.py", "--no-compile"]
    command += ["--shape", "1", "2", "64", "16", "--rounds", "2", "--skip-lengths", "128"]
    command += ["--layers", "3", "--memory-length", "256", "--output", tmp_path / "result.json"]
    command += ["--isa", "default", "--clock", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result.pop("threads"), "torch" in result) == (1, True)
    del result["torch"]
    # Asked for, and told by the kernels of the process that did the work.
    assert (result.pop("isa"), result.pop("clock")) == ("default", "cpu")
    titles = " ".join(result)
    for claim in (
        "attention, forward, ",
        "softmax of given scores, forward and",
        "equal bit by bit",
    ):
        assert claim in titles
    for title, rows in result.items():
        assert title.removeprefix("memory, ") in done.stdout
        if title.startswith("memory"):
            assert rows["eager"] > 0
        else:
            assert rows["ours"]["ratio"] == 1
            assert len(rows) >= 2
