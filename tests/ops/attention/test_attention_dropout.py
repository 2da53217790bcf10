"""Dropped attention weights are the same ones in every backend, and so are the gradients."""

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.dispatch import attention, attention_reference
from megatron_gptx.ops.attention.dropout import draw_seed, survival
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, random_inputs, run


def seeded(form):
    """Return a form that drops the same weights in every call."""

    def call(*qkv: Tensor, **options):
        torch.manual_seed(3)
        return form(*qkv, **options)

    return call


def plain(*qkv: Tensor, **options):
    """Attend in plain PyTorch."""
    return attention(*qkv, **options, backend="reference")


@pytest.mark.parametrize("has_prev_scores", [True, False])
@pytest.mark.parametrize("top_k", [3, 40, 100])
def test_every_backend_drops_the_same_weights(form, has_prev_scores, top_k):
    inputs = random_inputs(s=60, t=90, d=16, has_prev_scores=has_prev_scores, dtype=torch.float32)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": SLOPES, "top_k": top_k, "dropout_p": 0.3}
    reference = run(seeded(attention_reference), inputs, **options)
    exact = run(seeded(attention_reference), widened, **options)
    assert_all_as_accurate(run(seeded(form), inputs, **options), reference, exact)
    if top_k < 90:
        assert_all_as_accurate(run(seeded(plain), inputs, **options), reference, exact)


def test_the_weights_are_dropped_by_place(form):
    q, k, *_ = (x.detach() for x in random_inputs(s=30, t=30, dtype=torch.float32))
    values = torch.eye(30).expand(2, 3, -1, -1).contiguous()
    torch.manual_seed(3)
    whole, _ = form(q[..., :30], k, values[..., :4].contiguous(), top_k=30)
    del whole
    pad = torch.zeros(2, 3, 30, 26)
    wide_q, wide_k = torch.cat([q, pad], -1), torch.cat([k, pad], -1)
    weights, _ = form(wide_q, wide_k, values, top_k=5)
    torch.manual_seed(3)
    dropped, _ = form(wide_q, wide_k, values, top_k=5, dropout_p=0.3)
    torch.manual_seed(3)
    keys = torch.arange(30).expand(2, 3, 30, 30)
    expected = weights * survival(0.3, draw_seed(), keys, 30)
    assert torch.equal(dropped, expected)
    assert 0.6 < (dropped != 0).sum() / (weights != 0).sum() < 0.8
