"""Attention on a GPU is the reference's, carried scores and gradients included."""

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.dispatch import attention, attention_reference
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, random_inputs, run

SHAPES = [(64, 64, 16), (7, 40, 64), (1, 50, 128), (301, 301, 64), (100, 2100, 32)]


def fused(*qkv: Tensor, **options) -> tuple[Tensor, Tensor | None]:
    """Attend through the kernels, with the same seed in every call."""
    torch.manual_seed(3)
    return attention(*qkv, **options, backend="fused")


def reference(*qkv: Tensor, **options) -> tuple[Tensor, Tensor | None]:
    """Attend as defined, with the same seed in every call."""
    torch.manual_seed(3)
    return attention_reference(*qkv, **options)


def to(inputs: list[Tensor], *where) -> list[Tensor]:
    return [x.detach().to(*where).requires_grad_() for x in inputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_prev_scores", [True, False])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("s", "t", "d"), SHAPES)
def test_it_is_as_accurate_as_the_reference(gpu, s, t, d, dropout_p, has_prev_scores, dtype):
    inputs = to(random_inputs(s=s, t=t, d=d, has_prev_scores=has_prev_scores, dtype=dtype), gpu)
    starts = (torch.arange(t - s, t) // 3).int().expand(2, s).to(gpu)
    options = {"slopes": SLOPES.to(gpu), "top_k": 8, "dropout_p": dropout_p, "row_start": starts}
    actual, expected = run(fused, inputs, **options), run(reference, inputs, **options)
    exact = run(reference, to(inputs, torch.float64), **options)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]
    assert_all_as_accurate(actual, expected, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scores_may_take_the_place_of_the_previous_ones(gpu, dtype):
    q, k, v, prev_scores = (
        x.detach().to(gpu) for x in random_inputs(s=64, t=64, d=32, dtype=dtype)
    )
    prev_scores = prev_scores.tril()
    options = {"slopes": SLOPES.to(gpu), "top_k": 8, "return_scores": True}
    expected = fused(q, k, v, prev_scores=prev_scores.clone(), **options)
    actual = fused(q, k, v, prev_scores=prev_scores, reuse_scores=True, **options)
    assert actual[1].data_ptr() == prev_scores.data_ptr()
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def test_repeated_runs_give_the_same_bits(gpu):
    inputs = to(random_inputs(s=300, t=300, d=64, has_prev_scores=False, dtype=torch.bfloat16), gpu)
    options = {"slopes": SLOPES.to(gpu), "top_k": 8, "dropout_p": 0.1}
    first, *others = [run(fused, inputs, **options) for _ in range(5)]
    assert all(torch.equal(x, y) for other in others for x, y in zip(other, first, strict=True))
