"""Planned memory of every optimizer against what its own steps allocate."""

from typing import get_args

import pytest
import torch

from megatron_gptx.config.optimizers import OPTIMIZERS, OptimizerName
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.memory import FLOAT, state_memory
from megatron_gptx.costs.parameters import matrix_parameters, model_parameters
from megatron_gptx.costs.plan import make_plan
from megatron_gptx.model.initialize import parameter_roles
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.training.optimizer import CHOICES, build_optimizer
from tests.costs.test_memory_matches_the_model import LiveBytes
from tests.peaks import measure_peaks

NAMES = get_args(OptimizerName)
MODELS = {
    "ReZero": {},
    "Macaron": {"macaron": True, "position": "learned"},
    "SwiGLU": {"activation": "swiglu", "residual": "pre_norm", "ffn_hidden_size": 48},
    "tied, without biases": {"tied_head": True, "biases": False, "residual": "post_norm"},
}
SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 100, "seq_length": 8}


def make_config(variant: str, optimizer: str, **sections: object) -> Config:
    return Config.model_validate(
        {
            "model": {**SIZES, **MODELS[variant]},
            "training": {"steps": 1, "micro_batch_size": 1},
            "optimizer": {"name": optimizer, "lr": 0.001},
            "parallel": {"zero_stage": 0},
            **sections,
        }
    )


def test_every_optimizer_has_its_facts_and_its_implementation():
    assert list(OPTIMIZERS) == list(CHOICES) == list(NAMES)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_keeps_and_takes_what_is_planned(name, model):
    config = make_config(model, name)
    module = GPTXSequential(config.model)
    optimizer = build_optimizer(config, module, torch.device("cpu"), lambda line: None)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    planned = state_memory(config, 0, config.model.num_pipeline_layers)
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert planned.optimizer == kept
    live = LiveBytes()
    for parameter in module.parameters():
        live.ignore([parameter, parameter.grad, *optimizer.state[parameter].values()])
    with live:
        optimizer.step()
    # Groups are updated one after another: a plan counts them together.
    numbers = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    others = OPTIMIZERS[name].num_updates * FLOAT * (sum(numbers) - max(numbers))
    # Of single numbers, such as norms and counts, it knows nothing.
    assert live.peak == pytest.approx(planned.step - others, rel=0.01, abs=256)
    assert live.now < 256


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_that_are_listed_for_each_parameter(name):
    config = make_config("Macaron", name)
    module, facts = GPTXSequential(config.model), OPTIMIZERS[name]
    optimizer = build_optimizer(config, module, torch.device("cpu"), lambda line: None)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    number = 0
    for _, parameter, role in parameter_roles(module):
        matrix = role in ("weight", "qkv_weight", "stream_weight")
        listed = facts.matrix_moments if matrix and facts.matrix_moments else facts.moments
        state = dict(optimizer.state[parameter])
        assert int(state.pop("step")) == 1
        assert set(state) == set(listed)
        assert all(value.dtype == torch.float32 for value in state.values())
        assert all(value.shape == parameter.shape for value in state.values())
        number += parameter.numel() if matrix else 0
    layers = config.model.num_pipeline_layers
    assert matrix_parameters(config.model, 0, layers) == number


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if OPTIMIZERS[name].largest_zero_stage == 3]
)
def test_zero_shares_the_moments_of_every_optimizer(name, zero_stage, precision):
    layout = {"zero_stage": zero_stage, "data_replicas": 2}
    asked, adamw = (
        state_memory(make_config("ReZero", optimizer, parallel=layout, precision=precision), 0, 5)
        for optimizer in (name, "adamw")
    )
    part = -(-model_parameters(make_config("ReZero", name).model) // 2)
    facts = OPTIMIZERS[name]
    assert adamw.optimizer - asked.optimizer == (2 - len(facts.moments)) * FLOAT * part
    assert asked.step - adamw.step == facts.num_updates * FLOAT * part
    assert asked[:2] == adamw[:2]


@pytest.mark.extended
@pytest.mark.parametrize(
    "name", [name for name in NAMES if OPTIMIZERS[name].largest_zero_stage >= 2]
)
def test_the_peak_of_real_ranks_is_within_ten_percent_of_the_plan(tmp_path, name):
    # Weights outweigh activations, and ZeRO 2 has small buckets: the peak is the optimizer's.
    # Without ZeRO, DeepSpeed copies all gradients once to reduce them.
    config = make_config(
        "ReZero",
        name,
        model={**SIZES, "num_layers": 8, "hidden_size": 256},
        training={"steps": 3, "micro_batch_size": 1, "accumulation_steps": 2},
        parallel={"zero_stage": 2, "data_replicas": 2},
        output={"run_dir": str(tmp_path / "run")},
        data={"train": "none", "valid": "none"},
        launch={"device": "cpu", "timeout_seconds": 300},
        deepspeed={
            "zero_optimization": {"reduce_bucket_size": 10_000, "allgather_bucket_size": 10_000}
        },
    )
    planned = [stage.peak_bytes for stage in make_plan(config).stages] * 2
    assert planned == pytest.approx(measure_peaks(config), rel=0.1)
