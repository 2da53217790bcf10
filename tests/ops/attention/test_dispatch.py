"""Attention keeps the right keys, forgets nothing, and differentiates to the right numbers."""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_gptx.ops.attention import dispatch as op
from megatron_gptx.ops.attention.dispatch import attention_reference
from megatron_gptx.ops.attention.topk_softmax import topk_softmax
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, B, D, H, T, quantised_inputs, random_inputs, run


def attention(*qkv: Tensor, **options) -> tuple[Tensor, Tensor | None]:
    """Attend in plain PyTorch; test_fused_attention.py is about the kernels."""
    return op.attention(*qkv, backend="reference", **options)


FORMS = pytest.mark.parametrize("form", [attention, attention_reference])

# Every combination of ALiBi, carried scores and top_k, one above T among them.
OPTIONS = [
    pytest.param(slopes, later, top_k, id=f"{name}-{'later' if later else 'first'}-top{top_k}")
    for (name, slopes), later, top_k in product(
        [("alibi", SLOPES), ("no-alibi", None)], [True, False], [1, 3, 8, T, T + 5, None]
    )
]


def weights_of(form: Callable, q: Tensor, k: Tensor, **options) -> Tensor:
    """Return the (b, h, s, t) attention weights: what attention makes of one-hot values."""
    values = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    return form(q, k, values, **options)[0]


def best_keys(
    q: Tensor, k: Tensor, slopes: Tensor | None, prev_scores: Tensor | None, top_k: int
) -> list:
    """Return the set of kept keys of every row, chosen by sorting in plain Python."""
    kept = []
    for b, h, i in product(range(B), range(H), range(T)):
        scored = []
        for j in range(i + 1):
            score = sum(
                x * y for x, y in zip(q[b, h, i].tolist(), k[b, h, j].tolist(), strict=True)
            )
            score = score / D**0.5 + (0 if prev_scores is None else prev_scores[b, h, i, j].item())
            score += 0 if slopes is None else slopes[h].item() * (j - i)
            scored.append((score, j))
        kept.append({j for _, j in sorted(scored, reverse=True)[:top_k]})
    return kept


@FORMS
@pytest.mark.parametrize("has_prev_scores", [True, False])
@pytest.mark.parametrize("slopes", [None, SLOPES])
@pytest.mark.parametrize("top_k", [1, 3, 8, T])
def test_a_row_keeps_its_best_keys_and_of_equal_ones_the_most_recent(
    form, has_prev_scores, slopes, top_k
):
    q, k, _, *prev_scores = (x.detach() for x in quantised_inputs(has_prev_scores=has_prev_scores))
    given = prev_scores[0] if has_prev_scores else None
    weights = weights_of(form, q, k, slopes=slopes, top_k=top_k, prev_scores=given)
    kept = [set(row.nonzero().flatten().tolist()) for row in weights.view(-1, T)]
    assert kept == best_keys(q, k, slopes, given, top_k)


@FORMS
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_a_row_has_exactly_top_k_weights_or_one_per_key_so_far(form, top_k):
    # Equal keys: every row is one big tie.
    q, k = torch.ones(B, H, T, D), torch.ones(B, H, T, D)
    weights = weights_of(form, q, k, top_k=top_k)
    expected = torch.arange(1, T + 1).clamp(max=top_k)
    assert torch.equal(weights.count_nonzero(-1), expected.expand(B, H, T))
    assert torch.allclose(weights.sum(-1), torch.ones(B, H, T))


def test_ties_are_in_the_quantised_inputs():
    q, k, *_ = (x.detach() for x in quantised_inputs(has_prev_scores=False))
    scores = (q @ k.transpose(-2, -1)).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    third, fourth = scores.topk(4).values[..., 2:].unbind(-1)
    assert ((third == fourth) & fourth.isfinite()).float().mean() > 0.1


@pytest.mark.parametrize(("slopes", "has_prev_scores", "top_k"), OPTIONS)
def test_every_form_gives_the_reference_under_ties(slopes, has_prev_scores, top_k):
    inputs = quantised_inputs(has_prev_scores=has_prev_scores, dtype=torch.float64)
    options = {"slopes": slopes, "top_k": top_k}
    results = zip(
        run(attention, inputs, **options), run(attention_reference, inputs, **options), strict=True
    )
    # In float64 nothing rounds to another choice: what is left are a few last digits.
    assert max((a - b).abs().max().item() for a, b in results) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("slopes", "has_prev_scores", "top_k"), OPTIONS)
def test_attention_is_as_accurate_as_the_reference(slopes, has_prev_scores, top_k, dtype):
    inputs = random_inputs(s=64, t=64, d=16, has_prev_scores=has_prev_scores, dtype=dtype)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": slopes, "top_k": top_k}
    actual = run(attention, inputs, **options)
    reference = run(attention_reference, inputs, **options)
    assert [x.dtype for x in actual] == [x.dtype for x in reference]
    assert_all_as_accurate(actual, reference, run(attention_reference, widened, **options))


@FORMS
@pytest.mark.parametrize("s", [1, 5, T])
@pytest.mark.parametrize("top_k", [3, None])
@pytest.mark.parametrize("slopes", [None, SLOPES])
def test_gradients_are_those_of_finite_differences(form, s, top_k, slopes):
    inputs = random_inputs(s=s)

    def apply(q: Tensor, k: Tensor, v: Tensor, prev_scores: Tensor) -> tuple[Tensor, ...]:
        return form(
            q, k, v, slopes=slopes, top_k=top_k, prev_scores=prev_scores, return_scores=True
        )

    # Far from ties, so that no difference step changes the choice of keys.
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)


@FORMS
@pytest.mark.parametrize("top_k", [3, None])
def test_gradients_pass_through_dropout(form, top_k):
    inputs = random_inputs(has_prev_scores=False)

    def apply(*qkv: Tensor) -> Tensor:
        torch.manual_seed(5)
        return form(*qkv, slopes=SLOPES, top_k=top_k, dropout_p=0.4)[0]

    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)


@FORMS
def test_dropout_zeroes_kept_weights_and_scales_the_others(form):
    q, k, *_ = (x.detach() for x in random_inputs(has_prev_scores=False))
    before = weights_of(form, q, k, top_k=5)
    after = weights_of(form, q, k, top_k=5, dropout_p=0.25)
    survived = after != 0
    assert torch.allclose(after[survived], before[survived] / 0.75)
    assert 0.65 < survived.sum() / (before != 0).sum() < 0.85


@FORMS
@pytest.mark.parametrize("s", [1, 4])
@pytest.mark.parametrize(("slopes", "has_prev_scores", "top_k"), OPTIONS)
def test_the_last_queries_alone_get_what_they_get_among_all(
    form, s, slopes, has_prev_scores, top_k
):
    q, k, v, *prev_scores = (x.detach() for x in random_inputs(has_prev_scores=has_prev_scores))
    everything, _ = form(
        q, k, v, slopes=slopes, top_k=top_k, prev_scores=prev_scores[0] if has_prev_scores else None
    )
    last, _ = form(
        q[..., -s:, :],
        k,
        v,
        slopes=slopes,
        top_k=top_k,
        prev_scores=prev_scores[0][..., -s:, :] if has_prev_scores else None,
    )
    assert torch.allclose(last, everything[..., -s:, :], rtol=0, atol=1e-14)


@FORMS
@pytest.mark.parametrize("top_k", [3, None])
def test_the_scores_hold_no_alibi_and_nothing_that_is_not_seen(form, top_k):
    q, k, v, prev_scores = (x.detach() for x in quantised_inputs(has_prev_scores=True))
    _, scores = form(
        q, k, v, slopes=SLOPES, top_k=top_k, prev_scores=prev_scores, return_scores=True
    )
    assert torch.equal(scores, (q @ k.transpose(-2, -1) / D**0.5 + prev_scores).tril())


@FORMS
def test_no_scores_are_returned_unasked(form):
    q, k, v = random_inputs(has_prev_scores=False)
    assert all(form(q, k, v, top_k=top_k)[1] is None for top_k in (3, None))


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_ranked_by_float32_scores(form, dtype):
    # 256 + 1/8 is 256 in either type: only wide scores tell the first key from the second.
    q = torch.tensor([[16.0, 0.25]] * 3, dtype=dtype).view(1, 1, 3, 2)
    k = torch.tensor([[16.0, 0.5], [16.0, 0.0], [0.0, 0.0]], dtype=dtype).view(1, 1, 3, 2)
    weights = weights_of(form, q, k, top_k=1)
    assert weights[0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    out, scores = form(q, k, k, top_k=1, return_scores=True)
    assert (out.dtype, scores.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("slopes", [None, SLOPES])
def test_dense_attention_is_top_k_attention_that_keeps_everything(slopes):
    inputs = random_inputs(has_prev_scores=False)
    dense = run(attention, inputs, slopes=slopes)
    all_kept = run(attention_reference, inputs, slopes=slopes, top_k=T)
    for a, b in zip(dense, all_kept, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_top_k_attention_keeps_no_square_tensor_for_the_backward_pass():
    q, k, v, prev_scores = random_inputs()
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        attention(q, k, v, slopes=SLOPES, top_k=2, prev_scores=prev_scores, return_scores=True)
    assert saved
    assert max(saved) < B * H * T * T


def test_a_recomputed_forward_pass_gives_the_same_gradients():
    q, k, v, prev_scores = random_inputs()

    def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, scores = attention(
            q, k, v, slopes=SLOPES, top_k=3, prev_scores=prev_scores, return_scores=True
        )
        again, _ = attention(out, k, v, top_k=3, prev_scores=scores)
        return again.sin().sum()

    def gradients() -> Iterator[tuple[Tensor, ...]]:
        yield torch.autograd.grad(apply(q, k, v), (q, k, v, prev_scores))
        yield torch.autograd.grad(
            checkpoint(apply, q, k, v, use_reentrant=False), (q, k, v, prev_scores)
        )

    kept, recomputed = gradients()
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("slopes", [SLOPES, None])
def test_a_bad_key_spoils_no_query_that_does_not_see_it(bad, slopes):
    q, k, v, *_ = (x.detach() for x in random_inputs(s=40, t=40, dtype=torch.float32))
    before = attention(q, k, v, slopes=slopes, top_k=3)[0]
    k[:, :, 30] = bad
    after = attention(q, k, v, slopes=slopes, top_k=3)[0]
    assert torch.equal(after[:, :, :30], before[:, :, :30])


@pytest.mark.parametrize(
    ("s", "top_k", "problem"),
    [(5, 0, "top_k must be at least 1, got 0"), (5, -1, "got -1"), (9, 3, "9 queries for 8 keys")],
)
def test_what_no_form_computes_is_named(s, top_k, problem):
    q, k = torch.zeros(2, 3, s, 4), torch.zeros(2, 3, 8, 4)
    with pytest.raises(ValueError, match=problem):
        attention(q, k, k, top_k=top_k)
    with pytest.raises(ValueError, match=problem):
        topk_softmax(torch.zeros(2, 3, s, 8), top_k, backend="reference")
