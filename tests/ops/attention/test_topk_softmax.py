"""Top-k softmax over given scores keeps the reference's keys, and differentiates as it does."""

import math
from itertools import product

import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.attention.topk_softmax import topk_softmax, topk_softmax_reference
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, B, H
from tests.ops.softmax_inputs import random_scores, results, starts
from tests.pairs import pairwise

SHAPES = [(64, 64), (7, 40), (1, 50), (130, 300), (1, 1), (40, 2050)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


OPTIONS = {
    "plain": {},
    "alibi": {"slopes": SLOPES},
    "documents": {"slopes": SLOPES * 0.3, "row_start": "documents"},
    "dropout": {"slopes": SLOPES, "row_start": "documents", "dropout_p": 0.3, "seed": 2**40 + 5},
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("shape", "top_k", "name", "dtype"),
    pairwise(product(SHAPES, [1, 8, 40, 100, 3000], OPTIONS, FLOATS)),
)
def test_the_kernel_is_as_accurate_as_the_reference(shape, top_k, name, dtype):
    (s, t), options = shape, dict(OPTIONS[name])
    if "row_start" in options:
        options["row_start"] = starts(s, t)
    scores = random_scores(s, t, dtype)
    widened = scores.detach().double().requires_grad_()
    actual = results(topk_softmax, scores, top_k, **options, backend="fused")
    reference = results(topk_softmax_reference, scores, top_k, **options)
    exact = results(topk_softmax_reference, widened, top_k, **options)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in reference]
    assert torch.equal(actual[0] != 0, reference[0] != 0)
    assert_all_as_accurate(actual, reference, exact)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("shape", "levels", "dtype"), pairwise(product(SHAPES, [1, 3, 50], FLOATS))
)
def test_of_equal_scores_the_most_recent_win_in_the_kernel_and_the_reference(shape, levels, dtype):
    s, t = shape
    scores = random_scores(s, t, dtype, levels)
    for slopes in (None, SLOPES):
        expected = topk_softmax_reference(scores.float(), 8, slopes=slopes)
        _, kept, weights = torch.ops.gptx.topk_softmax(scores, slopes, 8, None, 0.0, 0)
        rows = torch.zeros(B, H, s, t).scatter_add_(-1, kept.clamp(min=0).long(), weights)
        assert torch.equal(rows != 0, expected != 0)
        seen = torch.arange(t - s + 1, t + 1).clamp(max=8).expand(B, H, s)
        assert torch.equal((kept >= 0).sum(-1), seen)


@pytest.mark.parametrize("name", ["plain", "alibi"])
def test_gradients_of_the_reference_are_those_of_finite_differences(name):
    scores = torch.randn(B, H, 4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: topk_softmax_reference(x, 3, **OPTIONS[name]), scores)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("top_k", [3, 100])
def test_a_score_that_is_no_number_makes_its_row_no_number(top_k, bad):
    scores = random_scores(150, 150).detach()
    scores[1, 2, 100, 7] = scores[0, 1, 50, 60] = bad  # the latter in the row's future
    probs = topk_softmax(scores, top_k, backend="fused")
    assert probs[1, 2, 100].isnan().sum() == (3 if math.isnan(bad) else 1) or top_k == 100
    assert probs[1, 2, 100].isnan().any()
    probs[1, 2, 100] = 0
    assert probs.isfinite().all()


@pytest.mark.usefixtures("kernels")
def test_a_row_of_minus_infinity_is_zero_and_has_no_gradient():
    scores = random_scores(20, 20).detach()
    scores[0, 0, 7] = -torch.inf
    scores.requires_grad_()
    for backend in ("fused", "reference"):
        probs, grad = results(topk_softmax, scores, 4, backend=backend)
        assert not probs[0, 0, 7].any()
        assert not grad[0, 0, 7].any()
        assert grad.isfinite().all()


@pytest.mark.usefixtures("kernels")
def test_scores_may_lie_anyhow_in_memory():
    scores = torch.randn(B, 40, H, 80)[..., ::2].transpose(1, 2)
    assert not scores.is_contiguous()
    expected = topk_softmax(scores.contiguous(), 5, backend="fused")
    assert torch.equal(topk_softmax(scores, 5, backend="fused"), expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("b", "h", "s"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_no_rows_give_no_rows(b, h, s):
    scores = torch.zeros(b, h, s, 5, requires_grad=True)
    probs = topk_softmax(scores, 3, backend="fused")
    assert probs.shape == scores.shape
    probs.sum().backward()


@pytest.mark.usefixtures("kernels")
def test_results_repeat_bit_by_bit_on_any_number_of_threads():
    scores, before = random_scores(150, 300), torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            runs.append(results(topk_softmax, scores, 8, slopes=SLOPES, backend="fused"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.usefixtures("kernels")
def test_pytorch_finds_nothing_wrong_with_the_op():
    scores = random_scores(6, 9)
    arguments = (scores, SLOPES, 3, starts(6, 9), 0.2, 7)
    torch.library.opcheck(torch.ops.gptx.topk_softmax.default, arguments)
    probs, kept, weights = torch.ops.gptx.topk_softmax(*arguments)
    torch.library.opcheck(
        torch.ops.gptx.topk_softmax_backward.default, (probs.detach(), kept, weights, 0.2, 7)
    )


BAD = {
    "scores must be .b, h, s, t.": {"scores": torch.zeros(3, 5, 5)},
    "scores must be float32": {"scores": torch.zeros(2, 3, 5, 5, dtype=torch.int32)},
    "6 queries for 5 keys": {"scores": torch.zeros(2, 3, 6, 5)},
    "top_k must be at least 1, got 0": {"top_k": 0},
    "dropout_p must be in": {"dropout_p": -0.1},
    "slopes must be one float32 per head": {"slopes": torch.zeros(3, dtype=torch.float64)},
    "row_start must be .b, s. int32": {"row_start": torch.zeros(2, 5, dtype=torch.int64)},
    "are more than 16777216": {"scores": torch.empty(1, 3, 1, 2**24 + 1)},
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("message", BAD)
def test_a_wrong_input_is_named(message):
    good = {"scores": torch.zeros(2, 3, 5, 5), "slopes": None, "top_k": 3, "row_start": None}
    good |= {"dropout_p": 0.0, "seed": 0}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gptx.topk_softmax(**(good | BAD[message]))


def test_a_kernel_that_cannot_run_is_an_error_only_where_it_is_asked_for(kernels):
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert topk_softmax(scores, 3).dtype == torch.float64
    with pytest.raises(UserError, match=r"fused top-k softmax cannot run: .*float64"):
        topk_softmax(scores, 3, backend="fused")
