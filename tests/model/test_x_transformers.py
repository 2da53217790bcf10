"""Blocks compute what x-transformers computes, forward and backward, for every idea it has.

Both get the same weights. x-transformers' projections of queries, keys and values have no biases
and its norms none either, so ours are zero there. Its carried scores include ALiBi, ours do not, so
those two ideas are compared apart.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from x_transformers import Decoder
from x_transformers.x_transformers import LayerNorm

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.block import MacaronBlock
from megatron_gptx.model.feedforward import SwiGLU
from megatron_gptx.model.layer_list import build_layer
from tests.numerics import assert_all_as_accurate

Pair = tuple[list[Tensor], list[Tensor]]

B, S, DEPTH, HEADS, WIDTH = 2, 24, 3, 6, 48
TOP_K = 5

# For each idea: our options, and theirs.
IDEAS = {
    "top_k": ({"attention": {"top_k": TOP_K}}, {"attn_sparse_topk": TOP_K}),
    "residual_scores": ({"attention": {"residual_scores": True}}, {"residual_attn": True}),
    "macaron": ({"macaron": True}, {"macaron": True}),
    "alibi": ({"position": "alibi"}, {"alibi_pos_bias": True, "alibi_num_heads": HEADS}),
    "post_norm": ({"residual": "post_norm"}, {"pre_norm": False}),
    "relu": ({"activation": "relu"}, {"ff_custom_activation": nn.ReLU()}),
    "swiglu": ({"activation": "swiglu"}, {"ff_glu": True, "ff_swish": True}),
}
COMBINATIONS = [
    [],
    *([idea] for idea in IDEAS),
    ["top_k", "residual_scores"],
    ["top_k", "alibi"],
    ["top_k", "residual_scores", "macaron"],
    ["top_k", "macaron", "alibi"],
    ["residual_scores", "macaron", "post_norm"],
    ["top_k", "alibi", "macaron", "post_norm"],
]


def configure(ideas: list[str]) -> tuple[ModelConfig, Decoder]:
    """Return our configuration and their decoder with the same ideas."""
    ours: dict = {
        "num_layers": DEPTH,
        "hidden_size": WIDTH,
        "num_heads": HEADS,
        "vocab_size": 10,
        "seq_length": S,
        "residual": "pre_norm",
        "position": "none",
        "attention": {},
    }
    # A softmax in the scores' own type: theirs is float32 even in a float64 model.
    dense = {"attn_custom_attn_fn": partial(torch.softmax, dim=-1)}
    theirs: dict = {} if "top_k" in ideas else dense
    for idea in ideas:
        our_options, their_options = IDEAS[idea]
        attention = {**ours["attention"], **our_options.get("attention", {})}
        ours = {**ours, **our_options, "attention": attention}
        theirs |= their_options
    config = ModelConfig.model_validate(ours)
    decoder = Decoder(
        dim=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        attn_dim_head=WIDTH // HEADS,
        ff_mult=config.ffn_width / WIDTH,
        norm_add_unit_offset=False,
        **theirs,
    )
    return config, decoder


def pair_parameters(layers: list[nn.Module], decoder: Decoder) -> list[Pair]:
    """Return parameters of ours with parameters of theirs that are the same when concatenated."""
    pairs: list[Pair] = []
    branches = chain.from_iterable(
        [
            (block.feedforward_before, block.add_before),
            (block.attention, block.add_attention),
            (block.feedforward_after, block.add_after),
        ]
        if isinstance(block, MacaronBlock)
        else [(block.attention, block.add_attention), (block.feedforward, block.add_feedforward)]
        for block in layers[:DEPTH]
    )
    for (branch, add), (norms, their_branch, _) in zip(branches, decoder.layers, strict=True):
        (norm,) = [norm for norm in norms if norm is not None]
        pairs.append(([add.norm.weight], [norm.gamma]))
        branch_of_theirs = getattr(their_branch, "fn", their_branch)  # Macaron wraps it to halve it
        pairs += _pair_branch(branch, branch_of_theirs)
    if isinstance(decoder.final_norm, LayerNorm):
        pairs.append(([layers[DEPTH].weight], [decoder.final_norm.gamma]))
    return pairs


def _pair_branch(ours: nn.Module, theirs: nn.Module) -> list[Pair]:
    if isinstance(ours, Attention):
        projections = [theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]
        return [([ours.qkv.weight], projections), ([ours.output.weight], [theirs.to_out.weight])]
    up, down = [module for module in theirs.modules() if isinstance(module, nn.Linear)]
    inner = [ours.up, ours.gate] if isinstance(ours, SwiGLU) else [ours.up]
    return [
        ([module.weight for module in inner], [up.weight]),
        ([module.bias for module in inner], [up.bias]),
        ([ours.down.weight], [down.weight]),
        ([ours.down.bias], [down.bias]),
    ]


def run_ours(layers: list[nn.Module], x: Tensor) -> Tensor:
    scores = None
    for layer in layers:
        x, scores = layer(x, scores)
    return x


def results(
    model: Callable[[Tensor], Tensor], groups: list[list[Tensor]], x: Tensor, weight: Tensor
) -> list[Tensor]:
    """Return output, gradient of x, and the gradients of each group of parameters as one."""
    x = x.clone().requires_grad_()
    out = model(x)
    loss = (out * weight).sum()
    grads = [torch.cat(torch.autograd.grad(loss, g, retain_graph=True)) for g in [[x], *groups]]
    return [out, *grads]


@pytest.mark.parametrize("ideas", COMBINATIONS, ids=lambda ideas: "+".join(ideas) or "plain")
def test_blocks_agree_with_x_transformers(ideas):
    torch.manual_seed(0)
    config, decoder = configure(ideas)
    with torch.no_grad():
        for parameter in decoder.parameters():
            # Larger than initial weights, so that attention is far from uniform.
            parameter += torch.randn_like(parameter) * 0.2
    layers = [build_layer(config, i, seed=0) for i in range(1, config.num_pipeline_layers - 1)]
    pairs = pair_parameters(layers, decoder)
    with torch.no_grad():
        for ours, theirs in pairs:
            parts = torch.cat(theirs).split([len(parameter) for parameter in ours])
            for parameter, part in zip(ours, parts, strict=True):
                parameter.copy_(part)

    x, weight = torch.randn(B, S, WIDTH), torch.randn(B, S, WIDTH)
    actual = results(partial(run_ours, layers), [ours for ours, _ in pairs], x, weight)
    parameters = [theirs for _, theirs in pairs]
    reference = results(decoder, parameters, x, weight)
    decoder.double()
    exact = results(decoder, parameters, x.double(), weight.double())
    assert_all_as_accurate(actual, reference, exact)
