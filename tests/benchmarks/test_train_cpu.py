"""The benchmark of training runs, compares like with like, and reports what it measured."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]

TINY = """
model: {num_layers: 2, hidden_size: 16, num_heads: 2, vocab_size: 30, seq_length: 12, macaron: true,
        attention: {top_k: 3, residual_scores: true}}
training: {steps: 10, micro_batch_size: 2, accumulation_steps: 2}
optimizer: {lr: 0.01}
parallel: {pipeline_stages: 2}
"""


def benchmark(folder, *arguments):
    (folder / "tiny.yml").write_text(TINY)
    command = [sys.executable, ROOT / "benchmarks" / "train_cpu.py", folder / "tiny.yml"]
    command += ["--threads", "1", "--pairs", "2", "--steps-per-block", "1", *arguments]
    # A failed run leaves its log among the temporary files.
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


def test_all_sides_are_as_large_and_the_ratios_are_of_what_was_measured(tmp_path):
    done = benchmark(tmp_path, "--output", "result.json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    ours, reference, defined, theirs = result["parameters"].values()
    assert ours == reference == defined
    # In each layer, biases to make queries, keys, values and output; and the last norm's.
    assert ours - theirs == 2 * 4 * 16 + 16
    lines = [line for line in done.stdout.splitlines() if "tokens/s" in line]
    own, *others = result["tokens_per_second"].items()
    assert own[0] == "ours, fused"
    for name, speeds in others:
        turns = [a / b for a, b in zip(own[1], speeds, strict=True)]
        assert len(turns) == 2
        assert result["ratios"][name] == median(turns)
        (line,) = [line for line in lines if line.startswith(name)]
        assert f"{median(turns):.2f}x" in line


@pytest.mark.extended
def test_a_side_that_does_not_learn_is_not_compared(tmp_path):
    done = benchmark(tmp_path, "--set", "optimizer.lr=1e6")
    assert done.returncode == 2
    assert "ours, fused does not learn" in done.stdout
    assert "tokens/s" not in done.stdout


def test_a_misspelled_option_is_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yml").write_text(TINY)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("train_cpu").main(
            [f"{tmp_path}/tiny.yml", "--set", "optimizer.rate=1"]
        )
    assert stopped.value.code == 2
    assert "optimizer.rate: unknown key" in capsys.readouterr().err
