"""The benchmark of checkpoints measures both kinds of saving by as many ranks as are asked for."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = """
model: {num_layers: 2, hidden_size: 16, num_heads: 2, vocab_size: 30, seq_length: 12}
training: {steps: 10, micro_batch_size: 2, accumulation_steps: 2}
optimizer: {lr: 0.01}
parallel: {pipeline_stages: 2, data_replicas: 1, zero_stage: 0}
"""


def benchmark(folder, *arguments):
    (folder / "tiny.yml").write_text(TINY)
    command = [sys.executable, ROOT / "benchmarks" / "checkpoint_cpu.py", folder / "tiny.yml"]
    command += ["--pairs", "2", "--folder", folder, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


def test_saves_and_steps_are_measured_in_pairs(tmp_path):
    done = benchmark(tmp_path, "--output", "result.json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["bytes"] > 10_000
    lengths = {name: len(times) for name, times in result["save_ms"].items()}
    assert lengths == {"ours": 2, "raw": 2, "raw, by one": 2}
    steps = result["step_ms"]
    assert len(steps["alone"]) == len(steps["beside a save"]) == len(steps["copy"]) == 2
    assert all(time > 0 for times in (*result["save_ms"].values(), steps["copy"]) for time in times)
    assert "raw, by one" in done.stdout
    assert done.stdout.count("beside a save ") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "tiny.yml"]


def test_a_mistake_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yml").write_text(TINY)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    main = importlib.import_module("checkpoint_cpu").main
    with pytest.raises(SystemExit) as stopped:
        main([f"{tmp_path}/tiny.yml", "--folder", str(tmp_path), "--set", "model.num_heads=3"])
    assert stopped.value.code == 2
    assert "num_heads" in capsys.readouterr().err
