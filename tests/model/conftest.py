"""Tiny models of any switches."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.layer_list import build_layers

TINY = {
    "num_layers": 3,
    "hidden_size": 12,
    "num_heads": 3,
    "vocab_size": 20,
    "seq_length": 10,
    "init_std": 0.3,
}


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    """Return a function from changed options to a tiny model's configuration."""

    def make(**changes: Any) -> ModelConfig:
        return ModelConfig.model_validate({**TINY, **changes})

    return make


@pytest.fixture
def make_layers(make_config) -> Callable[..., list[nn.Module]]:
    """Return a function from changed options to a tiny model in which every parameter matters."""

    def make(**changes: Any) -> list[nn.Module]:
        layers = build_layers(make_config(**changes), seed=3)
        generator = torch.Generator().manual_seed(4)
        # Fresh gates are 0 and fresh biases too: what hangs on them would go untested.
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return layers

    return make


@pytest.fixture
def run() -> Callable[[Sequence[nn.Module], Tensor], Tensor]:
    """Return a function that sends token ids (b, s) through layers."""

    def run_layers(layers: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        x, scores = tokens, None
        for layer in layers:
            x, scores = layer(x, scores)
        assert scores is None
        return x

    return run_layers


@pytest.fixture
def tokens() -> Tensor:
    """Return (b, s) token ids, some of them repeated."""
    return torch.randint(
        TINY["vocab_size"], (2, TINY["seq_length"]), generator=torch.Generator().manual_seed(0)
    )
