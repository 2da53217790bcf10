"""Which parameters decay, and one norm for all stages."""

import pytest
import torch
from torch import nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.training.gradient_norm import GlobalNormClipping
from megatron_gptx.training.optimizer import choose_adamw, parameter_groups

MODEL = ModelConfig(
    num_layers=2, hidden_size=8, num_heads=2, vocab_size=10, seq_length=4, position="learned"
)


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is q for q in parameters)}


@pytest.mark.parametrize("residual", ["rezero", "pre_norm", "post_norm"])
def test_gates_norms_biases_and_tables_do_not_decay(residual):
    model = GPTXSequential(MODEL.model_copy(update={"residual": residual}))
    decay, keep = parameter_groups(model, weight_decay=0.1, decay_embeddings=False)
    assert decay["weight_decay"] == 0.1
    assert keep["weight_decay"] == 0.0
    assert names(model, decay["params"]) == {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and ".tokens." not in name and ".positions." not in name
    }
    assert len(decay["params"]) + len(keep["params"]) == len(list(model.parameters()))


def test_tables_decay_where_asked():
    model = GPTXSequential(MODEL)
    decay, _ = parameter_groups(model, weight_decay=0.1, decay_embeddings=True)
    assert {"layers.0.tokens.weight", "layers.0.positions.weight"} <= names(model, decay["params"])


def test_a_tied_table_counts_once_and_as_an_embedding():
    model = GPTXSequential(MODEL.model_copy(update={"tied_head": True}))
    decay, keep = parameter_groups(model, weight_decay=0.1, decay_embeddings=False)
    assert len(decay["params"]) + len(keep["params"]) == len(list(model.parameters()))
    assert "layers.0.tokens.weight" in names(model, keep["params"])


def test_no_parameter_lies_behind_a_single_number():
    model = GPTXSequential(MODEL)
    for group in parameter_groups(model, weight_decay=0.1, decay_embeddings=False):
        sizes = [parameter.numel() for parameter in group["params"]]
        gates = sizes.count(1)
        assert 1 not in sizes[: len(sizes) - gates]


def optimizer_with(gradients: list[list[float]], max_norm: float | None) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(values)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    optimizer.register_step_pre_hook(
        GlobalNormClipping(
            {index: [p] for index, p in enumerate(parameters)},
            num_layers=len(parameters),
            max_norm=max_norm,
            stages=None,
            device=torch.device("cpu"),
        )
    )
    return optimizer


def moved(optimizer: torch.optim.Optimizer) -> list[float]:
    return [-x for group in optimizer.param_groups for p in group["params"] for x in p.tolist()]


def test_gradients_are_scaled_to_the_largest_norm():
    optimizer = optimizer_with([[3.0], [0.0, 4.0]], max_norm=1.0)
    optimizer.step()
    assert moved(optimizer) == pytest.approx([0.6, 0.0, 0.8])
    assert optimizer._global_grad_norm == pytest.approx(5.0)


@pytest.mark.parametrize("max_norm", [None, 10.0])
def test_smaller_gradients_are_left_alone(max_norm):
    optimizer = optimizer_with([[3.0], [0.0, 4.0]], max_norm=max_norm)
    optimizer.step()
    assert moved(optimizer) == [3.0, 0.0, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(bad):
    optimizer = optimizer_with([[3.0], [bad, 4.0]], max_norm=1.0)
    optimizer.step()
    assert moved(optimizer) == [0.0, 0.0, 0.0]
    assert optimizer.overflow


def test_the_choice_of_adamw_gives_its_reason():
    choice = choose_adamw(torch.device("cpu"))
    assert "CPU" in choice.reason
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = choice.build([{"params": [parameter], "weight_decay": 0.5}], lr=0.1)
    parameter.grad = torch.zeros(2, 2)
    optimizer.step()
    assert parameter.detach().flatten().tolist() == pytest.approx([0.95] * 4)
