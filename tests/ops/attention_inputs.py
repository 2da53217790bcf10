"""Random and quantised inputs of attention, and everything that comes out for them."""

from collections.abc import Callable

import torch
from torch import Tensor

SLOPES = torch.tensor([0.5, 0.125, 0.03125])
B, H, T, D = 2, 3, 13, 4


def random_inputs(
    *,
    s: int = T,
    t: int = T,
    d: int = D,
    has_prev_scores: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Return q, k, v, and prev_scores where asked for."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    shapes = [((B, H, n, d), dtype) for n in (s, t, t)] + [((B, H, s, t), wide)] * has_prev_scores
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(kind).requires_grad_()
        for shape, kind in shapes
    ]


def quantised_inputs(*, has_prev_scores: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return small whole numbers: exact in any type and order of summation, and full of ties."""
    inputs = random_inputs(has_prev_scores=has_prev_scores)
    return [x.detach().round().to(dtype).requires_grad_() for x in inputs]


def run(form: Callable, inputs: list[Tensor], **options) -> tuple[Tensor, ...]:
    """Return output, scores where there are any, and the gradients of a sum over both."""
    q, k, v, *prev_scores = inputs
    has_scores = bool(prev_scores)
    out, scores = form(
        q,
        k,
        v,
        prev_scores=prev_scores[0] if has_scores else None,
        return_scores=has_scores,
        **options,
    )
    total = out.double().sin().sum() + (scores.double().cos().sum() if has_scores else 0)
    return (out, *([scores] if has_scores else []), *torch.autograd.grad(total, inputs))
