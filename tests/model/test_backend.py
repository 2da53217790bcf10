"""Which implementation each operation of a model uses is decided once, and said."""

from pathlib import Path

import pytest
import torch
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.backend import choose_backend
from megatron_gptx.model.embedding import Table
from megatron_gptx.model.layer_list import build_layers
from megatron_gptx.model.projection import Projection
from megatron_gptx.ops.kernels import library
from tests.numerics import assert_as_accurate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


def choose(model: nn.Module, backend: str, *, device="cpu", top_k=4, keys=64):
    """Return the lines that are said, and the backends that the operations have then."""
    lines: list[str] = []
    config = AttentionConfig.model_validate({"top_k": top_k})
    choose_backend(model, config, backend, device_type=device, num_keys=keys, say=lines.append)
    return lines, backends(model)


def backends(model: nn.Module) -> list[str]:
    """Return what attention, projections and tables use."""
    return [
        "".join({module.backend for module in model.modules() if isinstance(module, kind)})
        for kind in (Attention, Projection, Table)
    ]


@pytest.fixture
def model(make_layers) -> nn.Module:
    """Return a model's layers as one module."""
    return nn.ModuleList(make_layers(attention={"top_k": 4, "residual_scores": True}))


def test_a_model_uses_plain_pytorch_until_told_otherwise(model):
    assert backends(model) == ["reference"] * 3


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_kernels_are_used_where_they_run(model, backend, kernels):
    names = ["attention", "projections and loss"]
    lines = [f"{name}: fused kernels, {library.cpu_capability()}" for name in names]
    assert choose(model, backend) == (lines, ["fused"] * 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"top_k": None}, "without top_k, attention is dense and PyTorch's"),
        ({"device": "xpu"}, "there is no kernel for the device type xpu"),
        ({"device": "cuda", "keys": 16385}, "the CUDA kernel takes up to 16384 keys, not 16385"),
    ],
)
def test_a_reason_against_attention_is_said_or_raised(model, options, reason, kernels):
    lines, used = choose(model, "auto", **options)
    assert lines[0] == f"attention: plain PyTorch, since {reason}"
    assert used[0] == "reference"
    with pytest.raises(UserError, match=f"fused, but .* cannot run: {reason}"):
        choose(model, "fused", **options)


def test_what_has_kernels_uses_them_though_attention_is_dense(model, kernels):
    assert choose(model, "auto", top_k=None)[1] == ["reference", "fused", "fused"]


def test_kernels_without_a_cuda_half_are_said_to_be_so(model, kernels):
    if torch.ops.gptx.cuda_architectures():
        pytest.skip("the kernels have their CUDA half")
    lines, used = choose(model, "auto", device="cuda")
    assert lines[0].startswith("attention: plain PyTorch, since the kernels have no CUDA half")
    assert used[0] == "reference"


def test_the_reference_is_used_where_it_is_asked_for(model):
    lines, used = choose(model, "reference")
    assert {line.partition(": ")[2] for line in lines} == {
        "plain PyTorch, since ops.backend asks for it"
    }
    assert used == ["reference"] * 3


@pytest.mark.parametrize("macaron", [True, False])
def test_a_model_computes_the_same_with_either(make_layers, run, tokens, macaron, kernels):
    options = {"attention": {"top_k": 4, "residual_scores": True}, "macaron": macaron}
    layers = nn.ModuleList(make_layers(**options))
    reference = run(layers, tokens)
    exact = run(layers.double(), tokens)
    choose(layers.float(), "fused")
    assert_as_accurate(run(layers, tokens), reference, exact)


def test_the_quickstart_trains_on_the_kernels(kernels):
    config = load([ROOT / "configs" / "quickstart.yml"])
    layers = nn.ModuleList(build_layers(config.model, seed=0))
    lines: list[str] = []
    choose_backend(
        layers,
        config.model.attention,
        config.ops.backend,
        device_type="cpu",
        num_keys=config.model.seq_length,
        say=lines.append,
    )
    path = library.cpu_capability()
    assert lines == [
        f"attention: fused kernels, {path}",
        f"projections and loss: fused kernels, {path}",
    ]
