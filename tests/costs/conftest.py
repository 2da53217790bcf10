"""Configurations of any size and switches, complete where a test does not care."""

from collections.abc import Callable
from typing import Any

import pytest

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.schema import Config

TINY = {
    "num_layers": 3,
    "hidden_size": 8,
    "num_heads": 2,
    "vocab_size": 20,
    "seq_length": 6,
}

# The project's reference, whose numbers are known from elsewhere.
REFERENCE = {
    "num_layers": 20,
    "hidden_size": 2048,
    "num_heads": 16,
    "vocab_size": 22000,
    "seq_length": 1024,
    "residual": "rezero",
    "position": "learned",
    "attention": {"top_k": 8},
}


@pytest.fixture
def make_model() -> Callable[..., ModelConfig]:
    """Return a function from changed options to a tiny model."""

    def make(**changes: Any) -> ModelConfig:
        return ModelConfig.model_validate({**TINY, **changes})

    return make


@pytest.fixture
def reference_model() -> ModelConfig:
    """Return the model whose parameters are given: 20 blocks, 2048 wide, no Macaron."""
    return ModelConfig.model_validate(REFERENCE)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return a function from `section={option: value}` to a configuration of a tiny model."""

    def make(**sections: Any) -> Config:
        training = {"steps": 10, "micro_batch_size": 2, "accumulation_steps": 4}
        return Config.model_validate(
            {
                **sections,
                "model": {**TINY, **sections.get("model", {})},
                "training": {**training, **sections.get("training", {})},
                "optimizer": {"lr": 1e-4},
            }
        )

    return make


@pytest.fixture
def reference_config() -> Config:
    """Return the reference model in the layout it was trained in: two stages, fp16."""
    return Config.model_validate(
        {
            "model": REFERENCE,
            "training": {"steps": 10, "micro_batch_size": 1, "accumulation_steps": 4},
            "optimizer": {"lr": 2e-4},
            "precision": "fp16",
            "parallel": {"pipeline_stages": 2, "data_replicas": 1},
        }
    )
