"""The attention benchmark for GPUs says when it has none; its measurements run on any device."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from megatron_gptx.ops.kernels import library

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it where no GPU can be seen."""
    command = [sys.executable, BENCHMARKS / "attention_gpu.py", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    """Return the benchmark as a module, the kernels loaded."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("attention_gpu")


def test_without_a_gpu_it_says_so():
    done = benchmark("--dtype", "fp16")
    assert (done.returncode, done.stderr) == (2, "needs a GPU: none is visible\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--shape", "1", "2", "0", "4"], "must be at least 1"),
        (["--rounds", "0"], "must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_message(module, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def host_milliseconds(call):
    started_at = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started_at)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_checks_and_measures_on_any_device(module, dtype, capsys, tmp_path):
    arguments = ["--shape", "1", "2", "48", "16", "--rounds", "2", "--sets", "2", "--no-compile"]
    options = module.parse([*arguments, "--dtype", dtype])
    results: dict = {}
    module.measure(options, "cpu", host_milliseconds, results)
    module.write_results(tmp_path / "result.json", results)
    assert json.loads((tmp_path / "result.json").read_text()) == results
    shown = capsys.readouterr().out
    assert "differs from float64 by" in shown
    kernels, *tables = results.values()
    assert kernels["forward"]["share_of_copy"] > 0
    assert [rows["ours"]["ratio"] for rows in tables] == [1, 1, 1, 1]
    assert {"ours", "eager", "x-transformers", "dense, ALiBi"} == set(tables[-1])


def test_a_wrong_kernel_is_not_measured(module, monkeypatch):
    options = module.parse(["--shape", "1", "2", "48", "16", "--no-compile"])
    right = torch.ops.gptx.topk_softmax
    wrong = lambda *arguments: right(*arguments[:2], 7, *arguments[3:])  # noqa: E731
    monkeypatch.setattr(torch.ops.gptx, "topk_softmax", wrong)
    with pytest.raises(SystemExit, match="top-k softmax is wrong"):
        module.measure(options, "cpu", lambda call: 1.0, {})
