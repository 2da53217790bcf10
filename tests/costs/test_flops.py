"""FLOPs per layer and per token."""

import pytest

from megatron_gptx.costs.flops import (
    executed_flops_per_token,
    forward_flops_per_token,
    layer_flops,
    training_flops_per_token,
)
from megatron_gptx.costs.parameters import model_parameters


def test_every_matrix_costs_two_flops_per_weight_and_token(make_model):
    model = make_model(biases=False, position="none", residual="rezero", activation="swiglu")
    gates, embedding = 2 * model.num_layers, model.vocab_size * model.hidden_size
    weights = model_parameters(model) - gates - embedding - 2 * model.hidden_size
    attention = 2 * model.num_layers * model.hidden_size * (model.seq_length + 1)
    assert forward_flops_per_token(model) == 2 * weights + attention


def test_the_count_is_palms_with_causal_attention(reference_model):
    """PaLM's 12 L H Q T becomes 6 L H Q (T + 1) where a query sees only the keys before it."""
    model = reference_model.model_copy(
        update={"attention": reference_model.attention.model_copy(update={"top_k": None})}
    )
    length, width = model.seq_length, model.hidden_size
    weights = model.num_layers * 12 * width**2 + model.vocab_size * width
    palm = 6 * weights + 6 * model.num_layers * width * (length + 1)
    assert training_flops_per_token(model) == palm


@pytest.mark.parametrize("top_k", [1, 3, 6, None])
def test_only_kept_keys_multiply_values(make_model, top_k):
    model = make_model(attention={"top_k": top_k})
    free = make_model(attention={"top_k": 1})
    kept = sum(min(top_k or 6, row) for row in range(1, 7))
    extra = layer_flops(model)[1] - layer_flops(free)[1]
    assert extra == 2 * model.hidden_size * (kept - 6)


def test_macaron_splits_one_feedforward_into_two_of_half_the_width(make_model):
    assert layer_flops(make_model(macaron=True)) == layer_flops(make_model())
    wide = make_model(macaron=True, ffn_hidden_size=32)
    one_more = 2 * 6 * 2 * 8 * 32  # two FLOPs, six tokens, two matrices
    assert layer_flops(wide)[1] - layer_flops(make_model())[1] == one_more


def test_layers_without_matrix_products_cost_nothing(make_model):
    flops = layer_flops(make_model())
    assert flops[0] == flops[-2] == 0
    assert flops[-1] == 2 * 6 * 20 * 8
    assert layer_flops(make_model(tied_head=True)) == flops


def test_training_is_three_forward_passes(make_model):
    model = make_model()
    assert training_flops_per_token(model) == 3 * forward_flops_per_token(model)


def test_recomputing_runs_the_blocks_a_fourth_time(make_model):
    model = make_model()
    blocks = sum(layer_flops(model)[1:4]) / model.seq_length
    assert executed_flops_per_token(model, 0) == training_flops_per_token(model)
    for group in (1, 2):
        extra = executed_flops_per_token(model, group) - training_flops_per_token(model)
        assert extra == pytest.approx(blocks)
