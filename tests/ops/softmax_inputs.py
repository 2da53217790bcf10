"""Scores of top-k softmax, random or full of ties, and everything that comes out for them."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.ops.attention_inputs import B, H


def random_scores(
    s: int, t: int, dtype: torch.dtype = torch.float32, levels: int = 0, *, seed: int = 0
) -> Tensor:
    """Return (b, h, s, t) normal scores, or whole numbers up to a few levels, full of ties."""
    generator = torch.Generator().manual_seed(s * t + seed)
    if levels:
        return torch.randint(-levels, levels + 1, (B, H, s, t), generator=generator).to(dtype)
    return torch.randn(B, H, s, t, generator=generator).to(dtype).requires_grad_()


def starts(s: int, t: int) -> Tensor:
    """Return (b, s) first visible keys: one row sees nothing, and one itself alone."""
    rows = torch.stack([torch.arange(t - s, t) // 3, torch.arange(t - s, t).clamp(max=5)]).int()
    rows[0, s // 2], rows[1, s // 2] = t, t - s + s // 2
    return rows


def results(form: Callable, scores: Tensor, top_k: int, **options) -> tuple[Tensor, Tensor]:
    """Return probabilities, and the gradient of a sum over them."""
    probs = form(scores, top_k, **options)
    weights = torch.linspace(-1, 1, probs.shape[-1], dtype=torch.float64, device=probs.device)
    return probs, torch.autograd.grad((probs.double().sin() * weights).sum(), scores)[0]
