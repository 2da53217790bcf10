"""The attention benchmark checks what it times, and writes down what it shows."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from megatron_gptx.ops.kernels import library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


CLAIMS = ("attention, forward, ", "softmax of given scores, forward and", "equal bit by bit")


def test_each_side_is_checked_and_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("attention_cpu")
    options = Namespace(shape=[1, 2, 64, 16], rounds=2, skip_lengths=[128], layers=3)
    options.no_compile, options.clock = True, "cpu"
    results: dict = {}
    module.measure_attention(options, results)
    module.measure_skipping(options, results)
    module.measure_layers(options, results)
    assert module.peak_bytes("eager,256,0") > 0
    shown = capsys.readouterr().out
    for title, rows in results.items():
        assert title in shown
        assert rows["ours"]["ratio"] == 1
        assert len(rows) >= 2
    assert all(claim in " ".join(results) for claim in CLAIMS)


@pytest.mark.extended
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
    assert all(claim in " ".join(result) for claim in CLAIMS)
    for title, rows in result.items():
        assert title.removeprefix("memory, ") in done.stdout
        if title.startswith("memory"):
            assert rows["eager"] > 0
        else:
            assert rows["ours"]["ratio"] == 1
            assert len(rows) >= 2
