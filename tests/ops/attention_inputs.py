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
    carry: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Return q, k, v, and prev_scores where asked for."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    shapes = [((B, H, n, d), dtype) for n in (s, t, t)] + [((B, H, s, t), wide)] * carry
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(kind).requires_grad_()
        for shape, kind in shapes
    ]


def quantised_inputs(*, carry: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return small whole numbers: exact in any type and order of summation, and full of ties."""
    inputs = random_inputs(carry=carry)
    return [x.detach().round().to(dtype).requires_grad_() for x in inputs]


def run(form: Callable, inputs: list[Tensor], **options) -> tuple[Tensor, ...]:
    """Return output, carry where there is one, and the gradients of a sum over both."""
    q, k, v, *prev_scores = inputs
    carried = bool(prev_scores)
    out, scores = form(
        q, k, v, prev_scores=prev_scores[0] if carried else None, return_scores=carried, **options
    )
    total = out.double().sin().sum() + (scores.double().cos().sum() if carried else 0)
    return (out, *([scores] if carried else []), *torch.autograd.grad(total, inputs))
