"""Each optimizer has its own options and defaults; those of another one are refused."""

from typing import get_args

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load, load_with_sources
from megatron_gptx.config.optimizers import OPTIMIZERS, OptimizerName
from megatron_gptx.config.training import OptimizerConfig
from megatron_gptx.config.yaml_writer import dump

NAMES = get_args(OptimizerName)
MODEL = """\
model:
  num_layers: 2
  hidden_size: 8
  num_heads: 2
  vocab_size: 10
  seq_length: 4
training:
  steps: 10
  micro_batch_size: 1
"""


def write(tmp_path, text):
    path = tmp_path / "run.yml"
    path.write_text(MODEL + text)
    return path


def problems(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load([write(tmp_path, text)])
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_has_its_own_defaults_and_no_other_options(name):
    section = OptimizerConfig.model_validate({"name": name, "lr": 1.0})
    every = {option for facts in OPTIMIZERS.values() for option in facts.options}
    assert {option: getattr(section, option) for option in every} == {
        **dict.fromkeys(every),
        **OPTIMIZERS[name].options,
    }
    assert section.own_options == OPTIMIZERS[name].options
    assert set(section.own_options) <= set(OptimizerConfig.model_fields)


def test_adamw_is_the_default_with_the_options_it_always_had():
    section = OptimizerConfig.model_validate({"lr": 1.0})
    assert section.name == "adamw"
    assert section.own_options == {"betas": [0.9, 0.95], "eps": 1e-8}


def test_a_given_option_wins_and_null_is_the_optimizers_default():
    section = OptimizerConfig.model_validate(
        {"name": "muon", "lr": 1.0, "betas": [0.5, 0.6], "nesterov": False, "eps": None}
    )
    assert section.own_options == {
        "betas": [0.5, 0.6],
        "eps": 1e-8,
        "momentum": 0.95,
        "nesterov": False,
        "newton_schulz_steps": 5,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_comes_back_with_its_optimizer(tmp_path, name):
    text = f"optimizer: {{name: {name}, lr: 1e-3}}\nparallel: {{zero_stage: 0}}\n"
    config = load([write(tmp_path, text)])
    again = tmp_path / "again.yml"
    again.write_text(dump(config))
    assert load([again]) == config


def test_an_option_of_another_optimizer_is_refused_with_its_line(tmp_path):
    text = "optimizer:\n  name: lion\n  lr: 1e-4\n  eps: 1e-8\n  momentum: 0.9\n"
    found = problems(tmp_path, text)
    assert "2 problems" in found
    assert (
        "line 13: optimizer.eps: is an option of adamw and muon, and optimizer.name is lion; leave "
        "it out"
    ) in found
    assert (
        "line 14: optimizer.momentum: is an option of muon, and optimizer.name is lion; leave it "
        "out"
    ) in found


def test_an_unknown_optimizer_is_refused_with_its_line(tmp_path):
    found = problems(tmp_path, "optimizer:\n  name: adam\n  lr: 1e-4\n  momentum: 0.9\n")
    assert "line 11: optimizer.name: should be 'adamw', 'lion' or 'muon', got 'adam'" in found
    assert "momentum" not in found  # whether that is an option depends on the name


def test_other_mistakes_are_told_beside_it(tmp_path):
    found = problems(tmp_path, "optimizer:\n  name: lion\n  lr: -1\n  nesterov: true\n")
    assert "line 12: optimizer.lr: should be above 0" in found
    assert "line 13: optimizer.nesterov: is an option of muon" in found


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_muon_needs_whole_matrices(tmp_path, zero_stage):
    text = f"optimizer: {{name: muon, lr: 1e-3}}\nparallel:\n  zero_stage: {zero_stage}\n"
    assert (
        "line 12: parallel.zero_stage: optimizer.name muon updates whole matrices, which ZeRO cuts "
        f"into ranges: set zero_stage 0, or another optimizer, got {zero_stage}"
    ) in problems(tmp_path, text)


def test_muon_does_not_run_with_the_default_zero_stage(tmp_path):
    assert "parallel.zero_stage: optimizer.name muon" in problems(
        tmp_path, "optimizer: {name: muon, lr: 1e-3}\n"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_muon_needs_weights_that_are_their_own_masters(tmp_path, precision):
    text = "optimizer: {name: muon, lr: 1e-3}\nparallel: {zero_stage: 0}\n"
    assert (
        f"line 12: precision: optimizer.name muon updates whole matrices, which ZeRO cuts into "
        f"ranges, and {precision} runs as ZeRO 1 for its master weights: set precision fp32, or "
        "another optimizer"
    ) in problems(tmp_path, f"{text}precision: {precision}\n")


def test_the_source_of_a_default_is_no_file(tmp_path):
    loaded = load_with_sources([write(tmp_path, "optimizer:\n  name: lion\n  lr: 1e-4\n")])
    assert loaded.sources["optimizer.betas"] == "default"
    assert loaded.config.optimizer.betas == [0.9, 0.99]
