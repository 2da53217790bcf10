"""No switch lets a position see its future."""

from itertools import product

import pytest
import torch
from torch import Tensor

IDEAS = ["rezero", "top_k", "macaron", "residual_scores", "alibi"]
ALL_32 = [dict(zip(IDEAS, switches, strict=True)) for switches in product([False, True], repeat=5)]
PLAIN = [
    {"residual": "pre_norm", "position": "learned"},
    {"residual": "pre_norm", "position": "none"},
    {"residual": "post_norm", "position": "learned"},
    {"residual": "post_norm", "position": "none"},
    {"residual": "post_norm", "position": "alibi", "macaron": True},
    {"residual": "rezero", "position": "none", "attention": {"top_k": 2}},
    {"activation": "swiglu", "tied_head": True, "biases": False},
    {"activation": "relu", "dropout": 0.2, "attention": {"dropout": 0.2, "top_k": 2}},
]


def options_of(ideas: dict[str, bool]) -> dict:
    return {
        "residual": "rezero" if ideas["rezero"] else "pre_norm",
        "position": "alibi" if ideas["alibi"] else "learned",
        "macaron": ideas["macaron"],
        "attention": {
            "top_k": 3 if ideas["top_k"] else None,
            "residual_scores": ideas["residual_scores"],
        },
    }


def with_other_tokens(tokens: Tensor, places: slice) -> Tensor:
    changed = tokens.clone()
    changed[:, places] = (changed[:, places] + 1) % 20
    return changed


def check_causality(run, layers, tokens):
    before = run(layers, tokens)
    for position in (1, 5, tokens.shape[1] - 1):
        after = run(layers, with_other_tokens(tokens, slice(position, None)))
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


@pytest.mark.parametrize("ideas", ALL_32, ids=lambda on: "+".join(i for i in on if on[i]) or "none")
def test_future_tokens_never_change_past_logits(make_layers, run, tokens, ideas):
    layers = make_layers(**options_of(ideas))
    check_causality(run, layers, tokens)
    # Otherwise the test would hold for a model without attention.
    after = run(layers, with_other_tokens(tokens, slice(0, 1)))
    assert not torch.equal(after[:, 1:], run(layers, tokens)[:, 1:])


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_nor_do_they_in_the_plain_counterparts(make_layers, run, tokens, options):
    layers = [layer.eval() for layer in make_layers(**options)]
    check_causality(run, layers, tokens)
