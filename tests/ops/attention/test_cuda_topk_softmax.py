"""The CUDA kernels of top-k softmax, emulated on this CPU, do what the reference and the CPU's do.

The emulator runs the kernels' own lines, one fiber per thread, in three orders of turns.
"""

import math
import subprocess
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.masks import key_offset, unseen
from megatron_gptx.ops.attention.topk_softmax import (
    MOST_CUDA_KEYS,
    keep_best,
    topk_softmax_reference,
)
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, B, H
from tests.ops.emulator.compile import CSRC, compile_sanitized
from tests.ops.softmax_inputs import random_scores, results, starts
from tests.pairs import extended, pairwise

ASCENDING, DESCENDING, SHUFFLED = SCHEDULES = range(3)
# A row per warp, and a row per block.
WARP_ROWS = [(64, 64), (7, 40), (1, 50), (1, 1), (21, 300), (3, 1023), (2, 2048)]
BLOCK_ROWS = [(3, 2050), (1, 8200), (1, MOST_CUDA_KEYS)]
SHAPES = WARP_ROWS + BLOCK_ROWS
# The largest error of few numbers is luck: all shapes are measured together, small ones often.
CASES = [((s, t), seed) for s, t in SHAPES for seed in range(8 if s * t < 500 else 1)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# All that a warp compares at once, beyond that, and beyond most rows.
TOP_K = [1, 8, 32, 33, 3000]


class Emulated(torch.autograd.Function):
    """Emulated probabilities with their emulated gradient."""

    @staticmethod
    def forward(ctx, scores, slopes, top_k, row_start, dropout_p, seed, schedule):
        probs, kept, weights = torch.ops.gptx_emulated.topk_softmax(
            scores, slopes, top_k, row_start, dropout_p, seed, schedule
        )
        ctx.save_for_backward(kept, weights)
        ctx.options = dropout_p, seed, schedule
        return probs

    @staticmethod
    def backward(ctx, grad_probs):
        grad_scores = torch.ops.gptx_emulated.topk_softmax_backward(
            grad_probs, *ctx.saved_tensors, *ctx.options
        )
        return grad_scores, *[None] * 6


def topk_softmax_emulated(
    scores: Tensor, top_k: int, *, slopes=None, row_start=None, dropout_p=0.0, seed=0, schedule
) -> Tensor:
    return Emulated.apply(scores, slopes, top_k, row_start, dropout_p, seed, schedule)


OPTIONS = {
    "plain": {},
    "alibi": {"slopes": SLOPES},
    "documents": {"slopes": SLOPES * 0.01, "row_start": starts},
    "dropout": {"slopes": SLOPES, "row_start": starts, "dropout_p": 0.3, "seed": 2**40 + 5},
}


def options_for(name: str, s: int, t: int) -> dict:
    options = dict(OPTIONS[name])
    if "row_start" in options:
        options["row_start"] = starts(s, t)
    return options


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype) if i % 3 == j else extended(name, dtype)
        for i, name in enumerate(OPTIONS)
        for j, dtype in enumerate(FLOATS)
    ],
)
def test_the_kernels_are_as_accurate_as_the_reference(name, dtype):
    pooled = []
    for (s, t), seed in CASES:
        options = options_for(name, s, t)
        scores = random_scores(s, t, dtype, seed=seed)
        widened = scores.detach().double().requires_grad_()
        for schedule, top_k in enumerate(TOP_K):
            form = partial(topk_softmax_emulated, schedule=schedule % len(SCHEDULES))
            actual = results(form, scores, top_k, **options)
            reference = results(topk_softmax_reference, scores, top_k, **options)
            exact = results(topk_softmax_reference, widened, top_k, **options)
            assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in reference]
            # Dropped are the same ones.
            assert torch.equal(actual[0] != 0, reference[0] != 0)
            pooled += zip(actual, reference, exact, strict=True)
    assert_all_as_accurate(*zip(*pooled, strict=True))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("name", "levels", "schedule"),
    pairwise(product(["plain", "alibi", "documents"], [1, 3, 50], SCHEDULES)),
)
def test_reference_cpu_and_cuda_kernels_keep_the_same_keys(emulated, name, levels, schedule):
    for (s, t), dtype in zip(SHAPES, (FLOATS * 4)[: len(SHAPES)], strict=True):
        options = options_for(name, s, t)
        slopes, row_start = options.get("slopes"), options.get("row_start")
        scores = random_scores(s, t, dtype, levels)
        hidden = unseen(s, t, row_start, scores.device).expand_as(scores)
        z = scores.float()
        if slopes is not None:
            z = z + slopes.view(-1, 1, 1) * key_offset(s, t, torch.float32, scores.device)
        for top_k in TOP_K:
            arguments = scores, slopes, top_k, row_start, 0.0, 0
            probs, kept, weights = emulated.topk_softmax(*arguments, schedule)
            _, cpu_kept, cpu_weights = torch.ops.gptx.topk_softmax(*arguments)
            assert torch.equal(kept, cpu_kept)
            assert (weights - cpu_weights).abs().max() < 1e-6
            best = keep_best(z.masked_fill(hidden, -torch.inf), top_k) > -torch.inf
            assert torch.equal(as_mask(kept, t), best)
            assert not probs[~best].any()


def as_mask(kept: Tensor, num_keys: int) -> Tensor:
    """Return which keys are among (b, h, s, n) kept ones, -1 for none."""
    columns = torch.zeros(*kept.shape[:3], num_keys + 1, dtype=torch.bool)
    return columns.scatter_(-1, kept.long() + 1, True)[..., 1:]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("t", [300, 2100])
def test_z_is_rounded_twice_in_every_kernel(emulated, t):
    slopes = SLOPES * 0.3
    penalty = slopes.view(-1, 1, 1) * key_offset(4, t, torch.float32, slopes.device)
    # All z are 0, unless product and sum are rounded at once.
    arguments = (-penalty).expand(B, H, 4, t), slopes, 5, None, 0.0, 0
    _, kept, weights = emulated.topk_softmax(*arguments, ASCENDING)
    assert torch.equal(kept, torch.ops.gptx.topk_softmax(*arguments)[1])
    assert torch.equal(kept[0, 0, -1], torch.arange(t - 5, t, dtype=torch.int32))
    assert (weights == 0.2).all()


def test_the_scores_are_full_of_ties():
    scores = random_scores(21, 300, levels=3)
    eighth, ninth = scores.topk(9).values[..., 7:].unbind(-1)
    assert (eighth == ninth).float().mean() > 0.9


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -math.nan])
@pytest.mark.parametrize("top_k", [3, 40, 5000])
@pytest.mark.parametrize("t", [150, 2100])
def test_scores_that_are_no_numbers_or_infinite_are_the_cpu_kernels(emulated, t, top_k, bad):
    scores = random_scores(5, t).detach()
    scores[1, 2, 3, 7] = scores[0, 1, 0, t - 3] = bad  # the latter in the row's future
    scores[0, 0, 2] = -torch.inf
    scores[0, 0, 3, 5:] = -torch.inf
    for dropout_p in (0.0, 0.3):
        arguments = scores, SLOPES, top_k, None, dropout_p, 5
        for schedule in SCHEDULES:
            actual = emulated.topk_softmax(*arguments, schedule)
            expected = torch.ops.gptx.topk_softmax(*arguments)
            assert torch.equal(actual[1], expected[1])
            for x, y in zip(actual, expected, strict=True):
                assert torch.allclose(x, y, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert not actual[0][0, 0, 2].any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_scores_may_lie_anyhow_in_memory(emulated, dtype):
    spread = torch.randn(B, 5, H, 160).to(dtype)[..., ::2].transpose(1, 2)
    shifted = torch.randn(B * H * 5 * 80 + 1).to(dtype)[1:].view(B, H, 5, 80)
    assert not spread.is_contiguous()
    assert shifted.data_ptr() % 16
    for scores in (spread, shifted):
        probs, kept, weights = emulated.topk_softmax(scores, SLOPES, 4, None, 0.0, 0, SHUFFLED)
        again = emulated.topk_softmax(
            scores.clone(memory_format=torch.contiguous_format), SLOPES, 4, None, 0.0, 0, 0
        )
        assert all(torch.equal(x, y) for x, y in zip((probs, kept, weights), again, strict=True))
        backward = emulated.topk_softmax_backward
        grads = [backward(x, kept, weights, 0.0, 0, 0) for x in (scores, scores.contiguous())]
        assert torch.equal(*grads)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("s", "t"), [(30, 300), (2, 2500)])
def test_the_order_of_turns_changes_no_bit(s, t, name):
    for levels, top_k in [(0, 8), (0, 100), (2, 8)]:
        scores = random_scores(s, t, levels=levels).detach().requires_grad_()
        first, *others = [
            results(
                partial(topk_softmax_emulated, schedule=turn),
                scores,
                top_k,
                **options_for(name, s, t),
            )
            for turn in SCHEDULES
        ]
        assert all(torch.equal(x, y) for run in others for x, y in zip(run, first, strict=True))


@pytest.mark.parametrize(("b", "h", "s"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_no_rows_give_no_rows(emulated, b, h, s):
    probs, kept, weights = emulated.topk_softmax(torch.zeros(b, h, s, 5), None, 3, None, 0.0, 0, 0)
    assert (probs.shape, kept.shape, weights.shape) == ((b, h, s, 5), (b, h, s, 3), (b, h, s, 3))
    grads = emulated.topk_softmax_backward(probs, kept, weights, 0.0, 0, 0)
    assert grads.shape == probs.shape


def test_longer_rows_than_a_block_holds_are_refused(emulated):
    scores = torch.empty(1, 1, 1, MOST_CUDA_KEYS + 1)
    with pytest.raises(RuntimeError, match=rf"at most {MOST_CUDA_KEYS} keys, here are 16385"):
        emulated.topk_softmax(scores, None, 3, None, 0.0, 0, 0)
    header = (CSRC / "cuda" / "topk_softmax_launch.h").read_text()
    assert f"kMostKeys = {MOST_CUDA_KEYS};" in header


@pytest.mark.parametrize("types", [[], extended(["all"])])
def test_the_sanitizers_find_nothing(types):
    command = [compile_sanitized(), *types]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "nothing found\n"), done.stderr
