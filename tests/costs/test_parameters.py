"""Parameters per layer, against counts by hand."""

import pytest

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.costs.parameters import held_parameters, layer_parameters, model_parameters

ALL_IDEAS = {
    "position": "alibi",
    "macaron": True,
    "attention": {"top_k": 8, "residual_scores": True},
}


def test_the_reference_has_the_parameters_of_its_specification(reference_model):
    layers = layer_parameters(reference_model)
    assert len(layers) == 23
    assert sum(layers) == model_parameters(reference_model) == 1_099_214_888
    assert sum(layers[:11]) == 550_653_972
    assert sum(layers[11:]) == 548_560_916


def test_all_ideas_together_keep_the_size(reference_model):
    model = ModelConfig.model_validate({**reference_model.model_dump(), **ALL_IDEAS})
    assert model_parameters(model) == 1_097_158_716


@pytest.mark.parametrize(
    ("size", "billions"),
    [
        ((96, 12288, 96), 174.6),
        ((40, 5120, 40), 12.85),
        ((32, 4096, 32), 6.66),
        ((32, 2560, 32), 2.65),
        ((24, 2048, 16), 1.32),
    ],
)
def test_gpt3_sizes_match_their_names(size, billions):
    """GPT-3's table counts one matrix for embedding and head: Brown et al. 2020, table 2.1."""
    num_layers, width, num_heads = size
    model = ModelConfig(
        num_layers=num_layers,
        hidden_size=width,
        num_heads=num_heads,
        vocab_size=50257,
        seq_length=2048,
        residual="pre_norm",
        position="learned",
        tied_head=True,
    )
    assert round(model_parameters(model) / 1e9, 2) == pytest.approx(billions, abs=0.006)


def test_a_tied_matrix_counts_once_but_is_held_twice(make_model):
    tied, untied = make_model(tied_head=True), make_model()
    matrix = tied.vocab_size * tied.hidden_size
    assert model_parameters(untied) - model_parameters(tied) == matrix
    stop = tied.num_pipeline_layers
    assert held_parameters(tied, 0, 2) + held_parameters(tied, 2, stop) == model_parameters(untied)
    assert held_parameters(tied, 0, stop) == model_parameters(tied)
    assert held_parameters(untied, 2, stop) == sum(layer_parameters(untied)[2:])


def test_a_tied_copy_has_no_positions(make_model):
    tied = make_model(tied_head=True, position="learned")
    copy = held_parameters(tied, 1, tied.num_pipeline_layers) - sum(layer_parameters(tied)[1:])
    assert copy == tied.vocab_size * tied.hidden_size


def test_only_a_post_norm_model_ends_without_a_norm(make_model):
    for residual, num_layers in (("rezero", 6), ("pre_norm", 6), ("post_norm", 5)):
        model = make_model(residual=residual)
        assert len(layer_parameters(model)) == num_layers == model.num_pipeline_layers
