"""What blocks and their parts do to the stream and to the carried scores."""

import pytest
import torch

from megatron_gptx.model.attention import Attention, alibi_slopes
from megatron_gptx.model.block import Block, MacaronBlock
from megatron_gptx.model.layer_list import build_layers
from megatron_gptx.model.residual import make_residual

CLASSES = pytest.mark.parametrize(
    ("block_class", "macaron"), [(Block, False), (MacaronBlock, True)]
)
B, S, M = 2, 10, 12


@pytest.mark.parametrize("macaron", [False, True])
@pytest.mark.parametrize("residual_scores", [False, True])
def test_a_fresh_rezero_model_maps_its_embedding_straight_to_the_head(
    make_config, run, tokens, macaron, residual_scores
):
    attention = {"top_k": 3, "residual_scores": residual_scores}
    layers = build_layers(make_config(macaron=macaron, attention=attention), seed=1)
    embedding, *_, norm, head = layers
    assert torch.equal(run(layers, tokens), run([embedding, norm, head], tokens))


@CLASSES
def test_a_block_with_residual_scores_passes_them_on_and_the_last_one_does_not(
    make_config, block_class, macaron
):
    config = make_config(macaron=macaron, attention={"residual_scores": True})
    x, prev_scores = torch.randn(B, S, M), torch.randn(B, config.num_heads, S, S)
    _, scores = block_class(config, is_last=False)(x, prev_scores)
    assert scores.shape == prev_scores.shape
    assert block_class(config, is_last=True)(x, prev_scores)[1] is None
    plain = make_config(macaron=macaron)
    assert block_class(plain, is_last=False)(x, None)[1] is None


@CLASSES
def test_a_block_adds_the_scores_it_is_given(make_layers, block_class, macaron):
    block = make_layers(macaron=macaron, attention={"residual_scores": True, "top_k": 3})[2]
    assert isinstance(block, block_class)
    x = torch.randn(B, S, M, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(B, 3, S, S)
    first, scores = block(x, None)
    assert torch.equal(first, block(x, zero)[0])
    given = torch.randn(zero.shape, generator=torch.Generator().manual_seed(1))
    out, sums = block(x, given)
    assert not torch.equal(out, first)
    assert torch.allclose(sums, (scores + given).tril(), rtol=0, atol=1e-5)


def test_carried_scores_are_free_of_alibi(make_layers, run, tokens):
    """Every layer's own scores, summed by hand, are what reaches the last block."""
    layers = make_layers(position="alibi", attention={"residual_scores": True, "top_k": 4})
    x, scores, total = tokens, None, torch.zeros(())
    for layer in layers[:3]:
        if isinstance(layer, Block):
            heads = layer.attention.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            total = total + (heads[0] @ heads[1].transpose(-2, -1) / 2).tril()
        x, scores = layer(x, scores)
    assert torch.allclose(scores, total, rtol=0, atol=1e-4)


def test_macaron_feedforwards_are_half_steps(make_layers):
    layers = make_layers(macaron=True, residual="pre_norm", position="none")
    block, x = layers[1], torch.randn(B, S, M)
    with torch.no_grad():
        block.attention.output.weight.zero_()
        block.attention.output.bias.zero_()
        middle = x + 0.5 * block.feedforward_before(block.add_before.norm(x))
        expected = middle + 0.5 * block.feedforward_after(block.add_after.norm(middle))
        assert torch.equal(block(x, None)[0], expected)


@pytest.mark.parametrize("residual", ["rezero", "pre_norm", "post_norm"])
def test_a_residual_joins_a_branch_as_its_formula_says(make_config, residual):
    add = make_residual(make_config(residual=residual))
    x, branch = torch.randn(2, B, S, M, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        for parameter in add.parameters():
            parameter.fill_(0.5)
    normal = torch.nn.functional.layer_norm
    half = torch.full((M,), 0.5)
    expected = {
        "rezero": (x, x + 0.5 * branch),
        "pre_norm": (normal(x, (M,), half, half), x + branch),
        "post_norm": (x, normal(x + branch, (M,), half, half)),
    }[residual]
    assert torch.allclose(add.branch_input(x), expected[0], rtol=0, atol=1e-6)
    assert torch.allclose(add(x, branch), expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual", ["rezero", "pre_norm"])
def test_dropout_drops_elements_of_the_branch_and_none_of_the_stream(make_config, residual):
    add = make_residual(make_config(residual=residual, dropout=0.25))
    with torch.no_grad():
        for parameter in add.parameters():
            parameter.fill_(1.0)
    joined = add(torch.ones(100, 100), torch.ones(100, 100))
    dropped = joined == 1
    assert torch.allclose(joined[~dropped], torch.tensor(1 + 1 / 0.75))
    assert 0.22 < dropped.float().mean() < 0.28
    assert torch.equal(add.eval()(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))


def test_attention_weights_are_dropped_in_training_only(make_config):
    attention = Attention(make_config(attention={"dropout": 0.5, "top_k": 3}))
    x = torch.randn(B, S, M)
    assert not torch.equal(attention(x, None)[0], attention(x, None)[0])
    attention.eval()
    assert torch.equal(attention(x, None)[0], attention(x, None)[0])


def test_alibi_slopes_of_eight_heads_are_the_papers():
    assert alibi_slopes(8).tolist() == [2**-i for i in range(1, 9)]


def test_alibi_slopes_between_powers_of_two_are_the_authors():
    # Eight heads' slopes, then every other one of sixteen heads'.
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rel=1e-7
    )


def test_alibi_slopes_need_a_head():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        alibi_slopes(0)


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_a_cast_of_the_model_leaves_the_slopes_exact(make_config, cast):
    attention = Attention(make_config(num_heads=6))
    getattr(attention, cast)()
    x = torch.randn(1, 4, M, dtype=attention.qkv.weight.dtype)
    attention(x, None)
    assert torch.equal(attention.slopes, alibi_slopes(6))
    assert dict(attention.named_buffers()) == {}
