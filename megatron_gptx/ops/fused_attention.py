"""What PyTorch must know of the compiled top-k attention: its shapes and its gradients.

The op returns, besides the output and the carry, each query's kept keys and their weights: that is
all the backward pass needs, n = min(top_k, t) numbers of each per query.
"""

from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = "gptx::topk_attention", "gptx::topk_attention_backward"


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    top_k: int,
    prev_scores: Tensor | None,
    return_scores: bool,
    variant: str = "best",
) -> tuple[Tensor, Tensor | None]:
    """Return what `attention` returns; `variant` names one of `torch.ops.gptx.cpu_variants()`."""
    out, scores, _, _ = torch.ops.gptx.topk_attention(
        q, k, v, slopes, top_k, prev_scores, return_scores, variant
    )
    return out, scores if return_scores else None


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake(FORWARD, _forward_shapes)
    torch.library.register_fake(BACKWARD, _backward_shapes)
    torch.library.register_autograd(FORWARD, _backward, setup_context=_save)


def _forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor | None,
    top_k: int,
    prev_scores: Tensor | None,
    return_scores: bool,
    variant: str = "best",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, h, s, d = q.shape
    t = k.shape[2]
    scores_shape = (b, h, s, t) if return_scores else (0,)
    kept_shape = (b, h, s, min(top_k, t))
    return (
        v.new_empty(b, s, h, d).transpose(1, 2),
        q.new_empty(scores_shape, dtype=torch.float32),
        q.new_empty(kept_shape, dtype=torch.int32),
        q.new_empty(kept_shape, dtype=torch.float32),
    )


def _backward_shapes(
    grad_out: Tensor,
    grad_scores: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    weights: Tensor,
    needs_grad_prev: bool,
    variant: str = "best",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prev_shape = (*q.shape[:3], k.shape[2]) if needs_grad_prev else (0,)
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        q.new_empty(prev_shape, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, _, _, _, ctx.variant = inputs
    _, _, kept, weights = output
    ctx.mark_non_differentiable(kept, weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, kept, weights)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_scores: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    q, k, v, kept, weights = ctx.saved_tensors
    needs_grad_prev = ctx.needs_input_grad[5]
    if grad_out is None:
        grad_out = torch.zeros_like(q)
    if grad_scores is not None and grad_scores.numel() == 0:
        grad_scores = None
    grad_q, grad_k, grad_v, grad_prev = torch.ops.gptx.topk_attention_backward(
        grad_out, grad_scores, q, k, v, kept, weights, needs_grad_prev, ctx.variant
    )
    return grad_q, grad_k, grad_v, None, None, grad_prev if needs_grad_prev else None, None, None
