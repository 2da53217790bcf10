"""The benchmark of training runs, compares like with like, and reports what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

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


def test_both_sides_are_as_large_and_the_ratio_is_of_what_was_measured(tmp_path):
    done = benchmark(tmp_path, "--output", "result.json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    ours, theirs = result["parameters"].values()
    # In each layer, biases to make queries, keys, values and output; and the last norm's.
    assert ours - theirs == 2 * 4 * 16 + 16
    pairs = list(zip(*result["tokens_per_second"].values(), strict=True))
    assert len(pairs) == 2
    assert result["ratio"] == median(a / b for a, b in pairs)
    assert f"{result['ratio']:.2f}" in done.stdout.splitlines()[-1]


def test_a_side_that_does_not_learn_is_not_compared(tmp_path):
    done = benchmark(tmp_path, "--set", "optimizer.lr=1e6")
    assert done.returncode == 2
    assert "megatron_gptx does not learn" in done.stdout
    assert "ratio" not in done.stdout


def test_a_misspelled_option_is_one_message(tmp_path):
    done = benchmark(tmp_path, "--set", "optimizer.rate=1")
    assert done.returncode == 2
    assert "optimizer.rate: unknown key" in done.stderr
    assert "Traceback" not in done.stderr
