"""The GPU benchmark of training says when it cannot run, and its stages are those of the model."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_gptx.costs.plan import make_plan
from megatron_gptx.model.sequential import GPTXSequential
from tests.pairs import extended
from tests.runs import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it where no GPU can be seen."""
    command = [sys.executable, ROOT / "benchmarks" / "train_gpu.py", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


@pytest.mark.parametrize("mode", [["--stages"], extended([])])
def test_without_a_gpu_it_says_so(mode):
    done = benchmark(*mode)
    assert (done.returncode, done.stderr) == (2, "needs a GPU: none is visible\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optimizer.rate=1"], "optimizer.rate: unknown key"),
        (["--precisions", "int8"], "invalid choice: 'int8'"),
        (["--steps", "5"], "--steps must be above 5"),
        (["configs/125M.yml", "--stages"], "--stages needs a configuration of several"),
    ],
)
def test_a_wrong_argument_is_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("train_gpu").main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_stages_one_behind_the_other_are_the_whole_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    stage_alone = importlib.import_module("stage_alone")
    config = tiny_config(tmp_path, tmp_path, parallel__pipeline_stages=3)
    stages = [stage_alone.Stage(config, plan) for plan in make_plan(config).stages]
    tokens, labels = torch.randint(config.model.vocab_size, (2, 2, config.model.seq_length))
    target = labels, torch.tensor(float(labels.numel()))
    whole = GPTXSequential(config.model, seed=config.training.seed)(tokens, *target)

    # A stage that is not the last one returns the sum of what it sends times a target; the gradient
    # with respect to that target is what it sends.
    sent = tokens
    for stage, plan in zip(stages[:-1], make_plan(config).stages[:-1], strict=True):
        shape = (2, config.model.seq_length, stage_width(config, plan.stop_layer))
        probe = torch.zeros(shape, requires_grad=True)
        (sent,) = torch.autograd.grad(stage(sent, probe)[0], probe)
    assert torch.equal(stages[-1](sent, target)[0], whole)


def stage_width(config, edge: int) -> int:
    has_scores = 1 < edge <= config.model.num_layers
    return config.model.hidden_size + has_scores * config.model.num_heads * config.model.seq_length
