"""Which attention a model uses is decided once, and said."""

import pytest
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.model.attention import Attention, choose_backend
from megatron_gptx.ops import library
from tests.numerics import assert_as_accurate


@pytest.fixture(scope="module")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


def choose(model: nn.Module, backend: str, *, device="cpu", **attention):
    """Return the lines that are said and the backends that are set."""
    lines: list[str] = []
    config = AttentionConfig.model_validate({"top_k": 4, **attention})
    choose_backend(model, config, backend, device_type=device, num_keys=64, say=lines.append)
    found = {module.backend for module in model.modules() if isinstance(module, Attention)}
    return lines, found


@pytest.fixture
def model(make_layers) -> nn.Module:
    """Return a model's layers as one module."""
    return nn.ModuleList(make_layers(attention={"top_k": 4, "residual_scores": True}))


def test_a_model_uses_plain_pytorch_until_told_otherwise(model):
    assert {m.backend for m in model.modules() if isinstance(m, Attention)} == {"reference"}


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_kernels_are_used_where_they_run(model, backend, kernels):
    assert choose(model, backend) == (["attention: fused kernels"], {"fused"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"top_k": None}, "without top_k, attention is dense and PyTorch's"),
        ({"device": "xpu"}, "there is no kernel for the device type xpu"),
    ],
)
def test_a_reason_against_the_kernels_is_said_or_raised(model, options, reason):
    expected = [f"attention: plain PyTorch, since {reason}"], {"reference"}
    assert choose(model, "auto", **options) == expected
    with pytest.raises(UserError, match=f"fused, but .* cannot run: {reason}"):
        choose(model, "fused", **options)


def test_the_reference_is_used_where_it_is_asked_for(model):
    expected = ["attention: plain PyTorch, since ops.backend asks for it"], {"reference"}
    assert choose(model, "reference") == expected


def test_a_model_computes_the_same_with_either(model, run, tokens, kernels):
    reference = run(model, tokens)
    exact = run(model.double(), tokens)
    choose(model.float(), "fused")
    assert_as_accurate(run(model, tokens), reference, exact)
