"""Panels that no key of can be among the best are passed over, and nobody can tell."""

import pytest
import torch
from torch import Tensor

from tests.ops.attention_inputs import random_inputs

SLOPES = torch.tensor([0.5, 0.03125, 0.0])


def kept_keys(q: Tensor, k: Tensor, slopes: Tensor, top_k: int, *, skip: bool, variant: str):
    """Return kept keys and weights."""
    _, _, kept, weights = torch.ops.gptx.topk_attention(
        *(q, k, k, None, slopes, top_k, None, 0.0, 0, False, variant, skip)
    )
    return kept, weights


@pytest.mark.parametrize("top_k", [1, 8, 70])
@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
def test_skipping_changes_neither_keys_nor_weights(form, spread, top_k):
    q, k, *_ = (
        x.detach()
        for x in random_inputs(s=500, t=500, d=16, has_prev_scores=False, dtype=torch.float32)
    )
    options = {"variant": form.keywords["variant"], "top_k": top_k}
    found = kept_keys(spread * q, k, SLOPES, skip=True, **options)
    expected = kept_keys(spread * q, k, SLOPES, skip=False, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_distant_key_that_is_long_enough_is_found(form):
    q, k, *_ = (
        x.detach()
        for x in random_inputs(s=500, t=500, d=16, has_prev_scores=False, dtype=torch.float32)
    )
    k[:, :, 3] = 1000 * q[:, :, -1]
    kept, _ = kept_keys(q, k, SLOPES, 8, skip=True, variant=form.keywords["variant"])
    assert (kept[:, :, -1, 0] == 3).all()


@pytest.mark.parametrize("where", ["q", "k"])
def test_what_is_no_number_is_not_skipped(form, where):
    q, k, *_ = (
        x.detach()
        for x in random_inputs(s=500, t=500, d=16, has_prev_scores=False, dtype=torch.float32)
    )
    (q if where == "q" else k)[0, 0, 5, 2] = torch.nan
    _, weights = kept_keys(q, k, SLOPES, 8, skip=True, variant=form.keywords["variant"])
    rows = weights[0, 0].isnan().any(-1)
    if where == "q":
        assert rows.nonzero().flatten().tolist() == [5]
    else:
        assert rows[5:].all()
        assert not rows[:5].any()


def test_keys_whose_squares_vanish_are_not_passed_over(kernels):
    s, d = 400, 16
    generator = torch.Generator().manual_seed(0)
    q = 1e25 * torch.randn(1, 1, s, d, generator=generator)
    k = 1e-23 * torch.randn(1, 1, s, d, generator=generator)
    v, slopes = torch.randn(1, 1, s, d, generator=generator), torch.tensor([0.01])
    skipping, plain = (
        torch.ops.gptx.topk_attention(
            *(q, k, v, None, slopes, 4, None, 0.0, 0, False, "best", skip)
        )
        for skip in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(skipping, plain, strict=True))
