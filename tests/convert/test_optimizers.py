"""Lion and Muon of other tools, with the defaults that they have there."""

import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.convert.translate import nested
from tests.convert.settings import fates, refused, translated

SIZES = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 32}
NEOX = {**SIZES, "train_iters": 10, "train_micro_batch_size_per_gpu": 2}
MEGATRON = {
    **SIZES,
    "max_position_embeddings": 32,
    "train_iters": 10,
    "micro_batch_size": 2,
    "lr": 1e-3,
}


def optimizer(translation):
    """Return what a translation says of the optimizer, after a look at whether it can be read."""
    options = {**translation.options, "model.vocab_size": 100}
    config = Config.model_validate(nested(options))
    assert not [problem for check in config.checks() for problem in check()]
    assert not [problem for check in config.optimizer.checks() for problem in check()]
    return {
        path.removeprefix("optimizer."): value
        for path, value in translation.options.items()
        if path.startswith("optimizer.")
        and path.removeprefix("optimizer.") not in ("lr", "weight_decay", "decay_embeddings")
    }


@pytest.mark.parametrize("name", ["optimizer.type", "optimizer_type"])
@pytest.mark.parametrize("word", ["Lion", "lion"])
def test_lion_of_neox(name, word):
    translation = translated("neox", {**NEOX, name: word, "optimizer.params.lr": 1e-4})
    assert translation.complete
    assert optimizer(translation) == {"name": "lion", "betas": [0.9, 0.99]}


def test_lion_of_neox_keeps_its_betas_and_has_no_epsilon():
    given = {"optimizer.params.betas": [0.95, 0.98], "optimizer.params.eps": 1e-8}
    translation = translated("neox", {**NEOX, "optimizer.type": "Lion", **given})
    assert translation.complete
    assert fates(translation)["optimizer.params.eps"] == "not needed"
    assert optimizer(translation) == {"name": "lion", "betas": [0.95, 0.98]}


def test_adam_needs_no_option():
    for tool, minimal, name in (
        ("neox", NEOX, "optimizer.type"),
        ("megatron", MEGATRON, "optimizer"),
    ):
        translation = translated(tool, {**minimal, name: "adam"})
        assert translation.complete
        assert optimizer(translation) == {"betas": [0.9, 0.999]}


@pytest.mark.parametrize("word", ["sm3", "OneBitAdam", "Muon", "sgd"])
def test_other_optimizers_of_neox_are_refused(word):
    translation = translated("neox", {**NEOX, "optimizer.type": word})
    assert refused(translation) == {"optimizer.type"}
    assert "it knows Adam and Lion" in translation.refused[0]


def test_lion_of_megatron():
    given = {"optimizer": "lion", "lion_beta2": 0.99, "adam_beta2": 0.95, "adam_eps": 1e-8}
    translation = translated("megatron", {**MEGATRON, **given})
    assert translation.complete
    assert optimizer(translation) == {"name": "lion", "betas": [0.95, 0.99]}


@pytest.mark.parametrize("word", ["muon", "dist_muon"])
def test_muon_of_megatron(word):
    given = {
        "optimizer": word,
        "muon_extra_scale_factor": 0.2,
        "muon_momentum": 0.9,
        "muon_num_ns_steps": 4,
        "muon_scale_mode": "spectral",
        "muon_tp_mode": "blockwise",
        "muon_coefficient_type": "quintic",
        "adam_beta2": 0.95,
        "use_distributed_optimizer": True,
    }
    translation = translated("megatron", {**MEGATRON, **given})
    assert translation.complete
    muon = {"name": "muon", "momentum": 0.9, "newton_schulz_steps": 4, "betas": [0.9, 0.95]}
    assert optimizer(translation) == {**muon, "nesterov": False}
    for flag in ("muon_nesterov", "muon_use_nesterov"):
        ahead = translated("megatron", {**MEGATRON, **given, flag: True})
        assert optimizer(ahead) == {**muon, "nesterov": True}


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ({}, {"optimizer"}),
        ({"muon_extra_scale_factor": 1.0}, {"optimizer", "muon_extra_scale_factor"}),
        ({"muon_extra_scale_factor": 0.2, "bf16": True}, {"bf16"}),
        ({"muon_extra_scale_factor": 0.2, "muon_no_split_qkv": True}, {"muon_no_split_qkv"}),
        ({"muon_extra_scale_factor": 0.2, "muon_scale_mode": "shape_scaling"}, {"muon_scale_mode"}),
        (
            {"muon_extra_scale_factor": 0.2, "muon_scalar_optimizer": "lion"},
            {"muon_scalar_optimizer"},
        ),
    ],
)
def test_what_makes_another_muon_is_refused(given, lost):
    translation = translated("megatron", {**MEGATRON, "optimizer": "muon", **given})
    assert refused(translation) == lost
    assert optimizer(translation)["name"] == "muon"


def test_details_of_an_optimizer_mean_nothing_without_it():
    translation = translated("megatron", {**MEGATRON, "muon_momentum": 0.9, "lion_beta1": 0.9})
    assert translation.complete
    assert optimizer(translation) == {"betas": [0.9, 0.999]}
