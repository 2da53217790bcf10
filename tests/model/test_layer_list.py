"""The layer list: how many parameters, which initial weights, what is shared."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.costs.parameters import layer_parameters
from megatron_gptx.model.head import project
from megatron_gptx.model.initialize import initialize, parameter_roles
from megatron_gptx.model.layer_list import TIED_PARAMETER, build_layer, build_layers, layer_list
from megatron_gptx.model.layer_runner import LayerRunner

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yml"))
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
ALL_IDEAS = {
    **REFERENCE,
    "position": "alibi",
    "macaron": True,
    "attention": {"top_k": 8, "residual_scores": True},
}


def count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def counts(config: ModelConfig) -> list[int]:
    """Return the parameters of every layer, none of which gets memory; a shared one once."""
    with torch.device("meta"):
        layers = build_layers(config, seed=0)
    owned = [count(layer) for layer in layers]
    return [*owned[:-1], 0] if config.tied_head else owned


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def test_the_reference_model_has_its_known_size_on_each_stage():
    layers = counts(ModelConfig.model_validate(REFERENCE))
    assert len(layers) == 23
    assert sum(layers) == 1_099_214_888
    assert (sum(layers[:11]), sum(layers[11:])) == (550_653_972, 548_560_916)


def test_the_model_of_all_five_ideas_has_its_known_size():
    assert sum(counts(ModelConfig.model_validate(ALL_IDEAS))) == 1_097_158_716


def test_on_the_meta_device_no_layer_gets_memory():
    with torch.device("meta"):
        layers = build_layers(ModelConfig.model_validate(ALL_IDEAS), seed=0)
    assert {p.device.type for layer in layers for p in layer.parameters()} == {"meta"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_built_layers_have_the_planned_sizes(path):
    config = load([path]).model
    assert counts(config) == layer_parameters(config)


@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("macaron", [True, False])
def test_a_block_has_the_parameters_of_its_formula(make_config, activation, biases, macaron):
    config = make_config(
        activation=activation, biases=biases, macaron=macaron, ffn_hidden_size=7, residual="rezero"
    )
    m, f, bias = 12, 7, int(biases)
    attention = 4 * (m * m + bias * m)
    inner = 2 if activation == "swiglu" else 1
    feedforward = inner * (m * f + bias * f) + f * m + bias * m
    branches = 3 if macaron else 2
    assert counts(config)[1] == attention + (branches - 1) * feedforward + branches


@pytest.mark.parametrize("residual", ["rezero", "pre_norm", "post_norm"])
def test_the_list_is_embedding_blocks_norm_and_head(make_config, residual):
    config = make_config(residual=residual)
    names = [entry.name for entry in layer_list(config)]
    norm = [] if residual == "post_norm" else ["final norm"]
    assert names == ["embedding", "block 1", "block 2", "block 3", *norm, "head"]
    assert len(names) == config.num_pipeline_layers


def test_the_head_has_no_bias_and_only_a_tied_one_shares(make_config):
    head = build_layer(make_config(biases=True), -1, seed=0)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert [e.tied_key for e in layer_list(make_config()) if e.tied_key] == []
    tied = layer_list(make_config(tied_head=True))
    assert [tied[0].tied_key, tied[-1].tied_key] == ["embedding", "embedding"]
    assert {e.tied_key for e in tied[1:-1]} == {None}


def test_a_tied_head_uses_the_embeddings_table(make_config, run, tokens):
    config = make_config(tied_head=True, position="learned")
    layers = build_layers(config, seed=0)
    embedding, head = layers[0], layers[-1]
    assert head.get_parameter(TIED_PARAMETER) is embedding.get_parameter(TIED_PARAMETER)
    run(layers, tokens).logsumexp(-1).sum().backward()
    assert embedding.tokens.weight.grad.abs().min() > 0, "every row is a class of the head"

    # On another pipeline stage than the embedding: the same values, and no table of positions.
    apart = build_layer(config, config.num_pipeline_layers - 1, seed=0)
    assert torch.equal(apart.get_parameter(TIED_PARAMETER), embedding.tokens.weight)
    assert count(apart) == config.vocab_size * config.hidden_size
    # On the embedding's own stage: the embedding does the head's work.
    x = torch.randn(2, 10, 12)
    assert torch.equal(project(embedding, x, None)[0], apart(x, None)[0])


def test_weights_depend_on_the_seed_and_the_layer_alone(make_config):
    config = make_config(position="learned")
    forwards = [build_layer(config, i, seed=5) for i in range(6)]
    torch.manual_seed(99)
    for i in reversed(range(6)):
        assert same(build_layer(config, i, seed=5), forwards[i])
    assert not same(build_layer(config, 1, seed=6), forwards[1])
    assert not torch.equal(forwards[1].attention.qkv.weight, forwards[2].attention.qkv.weight)


def test_building_draws_nothing_from_the_global_generator(make_config):
    before = torch.get_rng_state()
    build_layers(make_config(position="learned", tied_head=True), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("residual", "macaron", "shrink"),
    [("rezero", False, 1), ("pre_norm", False, 16**-0.5), ("post_norm", True, 24**-0.5)],
)
def test_initial_weights_follow_their_roles(make_config, residual, macaron, shrink):
    sizes = {"hidden_size": 96, "num_layers": 8, "position": "learned", "init_std": 0.1}
    config = make_config(residual=residual, macaron=macaron, **sizes)
    stream = 0.1 * shrink
    scales = dict.fromkeys(("embedding", "weight", "qkv_weight", "head"), 0.1)
    scales["stream_weight"] = stream
    seen = set()
    for layer in build_layers(config, seed=0):
        for name, parameter, role in parameter_roles(layer):
            seen.add(role)
            if role in scales:
                assert parameter.std().item() == pytest.approx(scales[role], rel=0.1), name
            else:
                assert torch.equal(parameter, torch.full_like(parameter, role == "norm")), name
    norms_or_gates = {"gate", "norm"} if residual == "rezero" else {"norm"}
    assert seen == {*scales, "bias", *norms_or_gates}


def test_roles_name_what_the_optimizer_must_tell_apart(make_config):
    block = build_layer(make_config(), 1, seed=0)
    assert {name: role for name, _, role in parameter_roles(block)} == {
        "attention.qkv.weight": "qkv_weight",
        "attention.qkv.bias": "bias",
        "attention.output.weight": "stream_weight",
        "attention.output.bias": "bias",
        "add_attention.gate": "gate",
        "feedforward.up.weight": "weight",
        "feedforward.up.bias": "bias",
        "feedforward.down.weight": "stream_weight",
        "feedforward.down.bias": "bias",
        "add_feedforward.gate": "gate",
    }


def test_a_parameter_without_a_role_is_refused(make_config):
    with pytest.raises(TypeError, match=r"PReLU\.weight has no role"):
        initialize(nn.Sequential(nn.PReLU()), make_config(), torch.Generator())


def test_more_tokens_than_learned_positions_are_refused(make_config):
    tokens = torch.zeros(1, 11, dtype=torch.int64)
    embedding = build_layer(make_config(position="learned"), 0, seed=0)
    with pytest.raises(UserError, match="11 tokens do not fit into the 10 learned positions"):
        embedding(tokens, None)
    x, _ = build_layer(make_config(position="alibi"), 0, seed=0)(tokens, None)
    assert x.shape == (1, 11, 12)


def test_learned_positions_count_from_the_first_token_that_is_seen(make_config, make_layers):
    options = {"position": "learned", "residual": "pre_norm"}
    config, layers = make_config(**options), [x.double() for x in make_layers(**options)]
    ids = torch.arange(5)[None]
    padded = torch.cat([torch.full((1, 4), 9), ids], dim=1)
    row_start = torch.full((1, 9), 4, dtype=torch.int32)

    def logits(tokens, row_start):
        return LayerRunner(config, layers, first=0, seed=0).run(
            tokens, None, row_start, training=False
        )[0]

    # Float64, where other shapes may add up in another order.
    alone, beside = logits(ids, None), logits(padded, row_start)[:, 4:]
    assert torch.allclose(beside, alone, rtol=1e-12, atol=1e-12)


def test_learned_positions_are_added_to_the_tokens(make_config, tokens):
    embedding = build_layer(make_config(position="learned"), 0, seed=0)
    x, scores = embedding(tokens[:, :4], None)
    expected = embedding.tokens.weight[tokens[:, :4]] + embedding.positions.weight[:4]
    assert torch.equal(x, expected)
    assert scores is None


def test_dropout_reaches_the_embedding_and_every_branch(make_config):
    layers = build_layers(make_config(dropout=0.5, macaron=True), seed=0)
    rates = [m.p for layer in layers for m in layer.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.5] * (1 + 3 * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_computes_finite_logits_and_gradients(make_layers, run, tokens, dtype):
    attention = {"top_k": 3, "residual_scores": True}
    layers = [layer.to(dtype) for layer in make_layers(attention=attention, macaron=True)]
    logits = run(layers, tokens)
    assert logits.dtype == dtype
    logits.float().logsumexp(-1).mean().backward()
    gradients = [p.grad for layer in layers for p in layer.parameters()]
    assert all(g is not None and g.dtype == dtype and g.isfinite().all() for g in gradients)


def test_building_a_layer_does_not_import_the_compiler():
    code = (
        "import sys; from megatron_gptx.config.model import ModelConfig; "
        "from megatron_gptx.model.layer_list import build_layers; "
        "build_layers(ModelConfig(num_layers=1, hidden_size=8, num_heads=2, vocab_size=9, "
        "seq_length=4, position='learned', tied_head=True), 0); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
