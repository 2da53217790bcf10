"""Bytes of model state and activations, by precision, ZeRO stage and layout."""

from itertools import pairwise

import pytest

from megatron_gptx.costs.memory import (
    activation_memory,
    boundary_bytes,
    in_flight,
    state_memory,
)
from megatron_gptx.costs.parameters import layer_parameters, model_parameters
from megatron_gptx.costs.stages import boundaries


def state_per_parameter(config):
    """Return bytes per parameter of weights, gradients, optimizer state and step."""
    number = model_parameters(config.model)
    state = state_memory(config, 0, config.model.num_pipeline_layers)
    assert state.host == 0
    return tuple(amount / number for amount in state[:4])


@pytest.mark.parametrize(
    ("precision", "zero_stage", "replicas", "expected"),
    [
        ("fp32", 0, 1, (4, 4, 8, 0)),
        ("fp32", 0, 2, (4, 4, 8, 0)),
        ("fp32", 1, 1, (4, 4, 12, 4)),
        ("fp32", 1, 2, (4, 4, 6, 2)),
        ("bf16", 0, 2, (2, 4, 6, 0)),
        ("bf16", 1, 1, (2, 4, 12, 0)),
        ("bf16", 1, 2, (2, 4, 6, 0)),
        ("fp16", 0, 2, (2, 2, 6, 3)),
        ("fp16", 1, 1, (2, 2, 12, 6)),
        ("fp16", 1, 2, (2, 2, 6, 3)),
        ("fp32", 2, 2, (4, 4, 6, 2)),
        ("bf16", 2, 2, (2, 2, 6, 0)),
        ("fp16", 2, 2, (2, 2, 6, 3)),
    ],
)
def test_state_follows_precision_and_zero(make_config, precision, zero_stage, replicas, expected):
    # An even number of parameters divides among two replicas.
    config = make_config(
        model={"residual": "pre_norm"},
        precision=precision,
        parallel={"zero_stage": zero_stage, "data_replicas": replicas},
    )
    assert state_per_parameter(config) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", (4, 2, 6, 2)), ("bf16", (2, 2, 6, 2)), ("fp16", (2, 1, 6, 3))],
)
def test_zero_3_gathers_one_layer_and_shares_the_rest(make_config, precision, expected):
    config = make_config(
        model={"residual": "pre_norm"},
        precision=precision,
        parallel={"zero_stage": 3, "data_replicas": 2},
    )
    state = state_memory(config, 0, config.model.num_pipeline_layers)
    number, largest = model_parameters(config.model), max(layer_parameters(config.model))
    width, gradients, optimizer, step = expected
    assert state.weights == width * (number // 2 + largest)
    assert state[1:] == (gradients * number, optimizer * number, step * number, 0)


@pytest.mark.parametrize(
    ("zero_stage", "offload", "accumulation", "weights", "host"),
    [
        # Master weights, two moments, float32 gradients; then a buffer for new weights, and sums.
        (2, "optimizer", 1, 2, (16 + 2) / 2),
        (2, "optimizer", 4, 2, (16 + 2 + 2) / 2),
        # The same four; float32 sums of gradients; then the weights.
        (3, "optimizer", 4, 1, (16 + 4) / 2),
        (3, "all", 4, 0, (16 + 4 + 2) / 2),
    ],
)
def test_offloading_moves_bytes_to_the_host(
    make_config, zero_stage, offload, accumulation, weights, host
):
    config = make_config(
        model={"residual": "pre_norm"},
        training={"accumulation_steps": accumulation},
        precision="bf16",
        parallel={"zero_stage": zero_stage, "offload": offload, "data_replicas": 2},
    )
    number, layers = model_parameters(config.model), layer_parameters(config.model)
    state = state_memory(config, 0, len(layers))
    gathered = 2 * max(layers) if zero_stage == 3 else 0
    assert state == (weights * number + gathered, 0, 0, 0, host * number)


def test_more_replicas_never_need_more(make_config):
    for precision in ("fp32", "bf16", "fp16"):
        for zero_stage in (1, 2, 3):
            totals = [
                sum(
                    state_memory(
                        make_config(
                            precision=precision,
                            parallel={"zero_stage": zero_stage, "data_replicas": replicas},
                        ),
                        *(0, 6),
                    )
                )
                for replicas in (1, 2, 4, 8)
            ]
            assert all(few > many for few, many in pairwise(totals)), (precision, zero_stage)


def test_early_stages_hold_more_micro_batches(make_config):
    config = make_config(parallel={"pipeline_stages": 4}, training={"accumulation_steps": 3})
    assert [in_flight(config, stage) for stage in range(4)] == [3, 3, 2, 1]


def activations(config, stage=0):
    edges = boundaries(config)
    return activation_memory(config, edges[stage], edges[stage + 1], stage)


@pytest.mark.parametrize(
    "larger",
    [
        {"training": {"micro_batch_size": 4}},
        {"model": {"num_layers": 4}},
        {"model": {"seq_length": 7}},
        {"model": {"vocab_size": 50}},
        {"model": {"macaron": True, "ffn_hidden_size": 32}},
        {"model": {"activation": "swiglu"}},
        {"model": {"dropout": 0.1}},
        {"model": {"attention": {"top_k": 3}}},
        {"model": {"attention": {"residual_scores": True}}},
        {"model": {"attention": {"dropout": 0.1, "residual_scores": True}}},
        {"model": {"attention": {"top_k": 3, "residual_scores": True}}},
    ],
)
def test_more_of_anything_needs_more_activations(make_config, larger):
    assert activations(make_config(**larger)).total > activations(make_config()).total


def test_half_precision_needs_less(make_config):
    assert activations(make_config(precision="bf16")).total < activations(make_config()).total


def test_recomputing_trades_what_is_kept_for_one_group(make_config):
    model = {"num_layers": 12, "seq_length": 32, "attention": {"top_k": 4}}
    kept = {
        group: activations(make_config(model=model, training={"checkpoint_activations": group}))
        for group in (0, 1, 2, 12)
    }
    assert kept[12].kept < kept[2].kept < kept[1].kept < kept[0].kept
    assert kept[0].working < kept[1].working < kept[2].working < kept[12].working
    assert kept[2].total < kept[0].total


def test_recomputing_single_blocks_keeps_all_scores(make_config):
    model = {"num_layers": 4, "seq_length": 32}
    training = {"checkpoint_activations": 1, "micro_batch_size": 2}
    with_scores = {**model, "attention": {"residual_scores": True}}
    plain, handing_on = (
        activations(make_config(model=switched, training=training))
        for switched in (model, with_scores)
    )
    scores = 2 * 2 * 32 * 32 * 4  # (b, h, s, s) in float32
    # Three blocks start with the scores of the one before.
    assert handing_on.kept - plain.kept == 3 * scores


def test_only_neighbouring_blocks_exchange_scores(make_config):
    config = make_config(model={"attention": {"residual_scores": True}}, precision="bf16")
    stream = 2 * 6 * 8 * 2
    packed = 2 * stream + 2 * 2 * 6 * 6 * 4  # all in float32
    # Embedding | block 1 | block 2 | block 3 | norm | head
    expected = [stream, packed, packed, stream, stream]
    assert [boundary_bytes(config, edge) for edge in range(1, 6)] == expected


def test_without_residual_scores_only_activations_cross(make_config):
    config = make_config()
    assert {boundary_bytes(config, edge) for edge in range(1, 6)} == {2 * 6 * 8 * 4}


def test_what_crosses_is_held_while_a_micro_batch_is_in_flight(make_config):
    config = make_config(
        model={"attention": {"residual_scores": True}}, parallel={"pipeline_stages": 3}
    )
    one, two = (activation_memory(config, 1, stop, 0) for stop in (2, 3))
    received, sent = boundary_bytes(config, 1), boundary_bytes(config, 2)
    block = two.kept - one.kept
    assert one.kept - block == received + sent
    first = activation_memory(config, 0, 2, 0)
    assert one.kept - first.kept == one.working - first.working == received
