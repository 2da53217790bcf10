"""Which implementation of attention and loss a model uses is decided once, and said."""

import pytest
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.backend import choose_backend
from megatron_gptx.model.loss import TokenLoss
from megatron_gptx.ops import library
from tests.numerics import assert_as_accurate


@pytest.fixture(scope="module")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


def choose(model: nn.Module, backend: str, *, device="cpu", **attention):
    """Return the lines that are said, and the backends that attention and loss have then."""
    lines: list[str] = []
    config = AttentionConfig.model_validate({"top_k": 4, **attention})
    choose_backend(model, config, backend, device_type=device, say=lines.append)
    return lines, backends(model, Attention), backends(model, TokenLoss)


def backends(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {module.backend for module in model.modules() if isinstance(module, kind)}


@pytest.fixture
def model(make_layers) -> nn.Module:
    """Return a model's layers and loss as one module."""
    layers = make_layers(attention={"top_k": 4, "residual_scores": True})
    return nn.ModuleList([*layers, TokenLoss()])


def test_a_model_uses_plain_pytorch_until_told_otherwise(model):
    assert backends(model, Attention) == backends(model, TokenLoss) == {"reference"}


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_kernels_are_used_where_they_run(model, backend, kernels):
    lines = ["attention: fused kernels", "loss: fused kernels"]
    assert choose(model, backend) == (lines, {"fused"}, {"fused"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"top_k": None}, "without top_k, attention is dense and PyTorch's"),
        ({"device": "cuda"}, "there is no kernel for the device type cuda"),
    ],
)
def test_a_reason_against_the_kernels_is_said_or_raised(model, options, reason, kernels):
    lines, attention, _ = choose(model, "auto", **options)
    assert (lines[0], attention) == (f"attention: plain PyTorch, since {reason}", {"reference"})
    with pytest.raises(UserError, match=f"fused, but .* cannot run: {reason}"):
        choose(model, "fused", **options)


def test_the_loss_is_fused_even_where_attention_is_dense(model, kernels):
    lines, _, loss = choose(model, "auto", top_k=None)
    assert (lines[1], loss) == ("loss: fused kernels", {"fused"})


def test_the_reference_is_used_where_it_is_asked_for(model):
    reason = "plain PyTorch, since ops.backend asks for it"
    expected = [f"attention: {reason}", f"loss: {reason}"], {"reference"}, {"reference"}
    assert choose(model, "reference") == expected


def test_a_model_computes_the_same_with_either(make_layers, run, tokens, kernels):
    layers = nn.ModuleList(make_layers(attention={"top_k": 4, "residual_scores": True}))
    reference = run(layers, tokens)
    exact = run(layers.double(), tokens)
    choose(layers.float(), "fused")
    assert_as_accurate(run(layers, tokens), reference, exact)
