"""What PyTorch must know of the compiled top-k attention: its shapes and its gradients.

The op returns, besides the output and the scores, each query's kept keys and their weights: that is
all the backward pass needs, n = min(top_k, t) numbers of each per query.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_gptx.ops.attention.dropout import draw_seed
from megatron_gptx.ops.attention.options import AttentionOptions

FORWARD, BACKWARD = "gptx::topk_attention", "gptx::topk_attention_backward"
IN_PLACE, BACKWARD_IN_PLACE = "gptx::topk_attention_", "gptx::topk_attention_backward_"


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, *, variant: str = "best"
) -> tuple[Tensor, Tensor | None]:
    """Return what `attention` returns; `variant` names one of `torch.ops.gptx.cpu_variants()`."""
    seed = draw_seed() if options.dropout_p else 0
    if options.in_place():
        return _InPlaceAttention.apply(q, k, v, options.prev_scores, options, seed, variant)
    out, scores, _, _ = torch.ops.gptx.topk_attention(
        *(q, k, v, options.prev_scores, options.slopes, options.top_k, options.row_start),
        *(options.dropout_p, seed, options.return_scores, variant),
    )
    return out, scores if options.return_scores else None


class _InPlaceAttention(torch.autograd.Function):
    """Attention that writes its scores where the previous ones lie: one buffer for all layers.

    A function of its own, since PyTorch does not differentiate an op that writes to its input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prev_scores: Tensor,
        options: AttentionOptions,
        seed: int,
        variant: str,
    ) -> tuple[Tensor, Tensor]:
        out, kept, weights = torch.ops.gptx.topk_attention_(
            *(q, k, v, prev_scores, options.slopes, options.top_k, options.row_start),
            *(options.dropout_p, seed, variant),
        )
        ctx.mark_dirty(prev_scores)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, kept, weights, options.row_start)
        ctx.options = options.dropout_p, seed, ctx.needs_input_grad[3], variant
        return out, prev_scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_scores: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        _, _, needs_grad_prev_scores, _ = ctx.options
        if grad_out is None or grad_scores is None or not needs_grad_prev_scores:
            return *_gradients(ctx, grad_out, grad_scores), None, None, None
        q, k, v, kept, weights, row_start = ctx.saved_tensors
        dropout_p, seed, _, variant = ctx.options
        # Where it lies, like the scores: nobody else sees the gradient that the next layer made.
        grad_prev_scores = grad_scores.contiguous()
        grads = torch.ops.gptx.topk_attention_backward_(
            *(grad_out, grad_prev_scores, q, k, v, kept, weights, row_start),
            *(dropout_p, seed, variant),
        )
        return *grads, grad_prev_scores, None, None, None


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake(FORWARD, _forward_shapes)
    torch.library.register_fake(IN_PLACE, _in_place_shapes)
    torch.library.register_fake(BACKWARD, _backward_shapes)
    torch.library.register_fake(BACKWARD_IN_PLACE, _in_place_backward_shapes)
    torch.library.register_autograd(FORWARD, _backward, setup_context=_save)
    # Without a rule, PyTorch would take the gradient's own gradient for 0.
    torch.library.register_autograd(BACKWARD, _backward_twice)


def _backward_twice(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError("top-k attention can be differentiated once only")


def _forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prev_scores: Tensor | None,
    slopes: Tensor | None,
    top_k: int,
    row_start: Tensor | None,
    dropout_p: float,
    seed: int,
    return_scores: bool,
    variant: str = "best",
    skip: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, kept, weights = _shapes(q, k, v, top_k)
    scores_shape = (*q.shape[:3], k.shape[2]) if return_scores else (0,)
    return out, q.new_empty(scores_shape, dtype=torch.float32), kept, weights


def _in_place_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prev_scores: Tensor,
    slopes: Tensor | None,
    top_k: int,
    row_start: Tensor | None,
    dropout_p: float,
    seed: int,
    variant: str = "best",
) -> tuple[Tensor, Tensor, Tensor]:
    return _shapes(q, k, v, top_k)


def _shapes(q: Tensor, k: Tensor, v: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, s, d = q.shape
    kept_shape = (b, h, s, min(top_k, k.shape[2]))
    return (
        v.new_empty(b, s, h, d).transpose(1, 2),
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
    row_start: Tensor | None,
    dropout_p: float,
    seed: int,
    needs_grad_prev_scores: bool,
    variant: str = "best",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_shape = (*q.shape[:3], k.shape[2]) if needs_grad_prev_scores else (0,)
    return *_heads_side_by_side(q, k, v), q.new_empty(scores_shape, dtype=torch.float32)


def _in_place_backward_shapes(
    grad_out: Tensor,
    grad_scores: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    weights: Tensor,
    row_start: Tensor | None,
    dropout_p: float,
    seed: int,
    variant: str = "best",
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_side_by_side(q, k, v)


def _heads_side_by_side(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (
        x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v)
    )
    return grad_q, grad_k, grad_v


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, _, _, row_start, dropout_p, seed, _, variant, _ = inputs
    _, _, kept, weights = output
    ctx.mark_non_differentiable(kept, weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, kept, weights, row_start)
    ctx.options = dropout_p, seed, ctx.needs_input_grad[3], variant


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_scores: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad_out, grad_scores), *[None] * 8


def _gradients(
    ctx: Any, grad_out: Tensor | None, grad_scores: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return those of q, k, v and the previous scores."""
    q, k, v, kept, weights, row_start = ctx.saved_tensors
    dropout_p, seed, needs_grad_prev_scores, variant = ctx.options
    if grad_out is None:
        grad_out = torch.zeros_like(q)
    if grad_scores is not None and grad_scores.numel() == 0:
        grad_scores = None
    grad_q, grad_k, grad_v, grad_prev_scores = torch.ops.gptx.topk_attention_backward(
        *(grad_out, grad_scores, q, k, v, kept, weights, row_start),
        *(dropout_p, seed, needs_grad_prev_scores, variant),
    )
    return grad_q, grad_k, grad_v, grad_prev_scores if needs_grad_prev_scores else None
