"""Parameters per layer, against the built modules."""

from itertools import product
from pathlib import Path

import pytest
import torch

from megatron_gptx.config.load import load
from megatron_gptx.costs.parameters import held_parameters, layer_parameters
from megatron_gptx.costs.stages import boundaries
from megatron_gptx.model.layer_list import build_layer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def count(model, index):
    """Return the parameters of the built layer; on the meta device they take no memory."""
    with torch.device("meta"):
        layer = build_layer(model, index, 0)
    return sum(parameter.numel() for parameter in layer.parameters())


def assert_counts_match(model):
    counted = [count(model, index) for index in range(model.num_pipeline_layers)]
    own = layer_parameters(model)
    assert counted[:-1] == own[:-1]
    # Built by itself, as on a last stage, a tied head has a table of its own.
    last = model.num_pipeline_layers - 1
    assert counted[-1] == held_parameters(model, last, last + 1)
    assert own[-1] == (0 if model.tied_head else counted[-1])


@pytest.mark.parametrize("residual", ["rezero", "pre_norm", "post_norm"])
@pytest.mark.parametrize("position", ["alibi", "learned", "none"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
def test_every_combination_of_switches_has_the_planned_size(
    make_model, residual, position, activation
):
    switches = {"residual": residual, "position": position, "activation": activation}
    for macaron, biases, tied_head, ideas, inner in product(*[(False, True)] * 5):
        model = make_model(
            **switches,
            num_layers=1,
            macaron=macaron,
            biases=biases,
            tied_head=tied_head,
            ffn_hidden_size=12 if inner else None,
            attention={"top_k": 2, "residual_scores": True} if ideas else {},
        )
        assert_counts_match(model)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.stem)
def test_every_configuration_has_the_planned_size(path):
    config = load([path])
    assert_counts_match(config.model)
    edges = boundaries(config)
    assert len(edges) == config.parallel.pipeline_stages + 1
