"""Top-k attention on a GPU: scores by a matrix product, and kernels for the selected keys.

The forward pass reads k value vectors per query, not t. The backward pass scatters the k numbers of
each query into a zero (s, t) matrix; three ordinary matrix products then give the gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_gptx.ops.attention.dropout import draw_seed, survival
from megatron_gptx.ops.attention.options import AttentionOptions


def composed_attention(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor | None]:
    """Return what `attention` returns."""
    seed = draw_seed() if options.dropout_p else 0
    return _ComposedAttention.apply(q, k, v, options.prev_scores, options, seed)


class _ComposedAttention(torch.autograd.Function):
    """Top-k attention that keeps k numbers per query for the backward pass, not t."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prev_scores: Tensor | None,
        options: AttentionOptions,
        seed: int,
    ) -> tuple[Tensor, Tensor | None]:
        scale = q.shape[-1] ** -0.5
        into = prev_scores if options.in_place() else None
        scores = _products(q, k, scale=scale, added_to=prev_scores, out=into)
        kept, weights = torch.ops.gptx.topk_select_(
            scores, options.slopes, options.top_k, options.row_start, options.return_scores
        )
        out = torch.ops.gptx.sum_of_kept(kept, weights, v, options.dropout_p, seed)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, kept, weights, options.row_start)
        ctx.options = options.dropout_p, seed, options.reuse_scores
        if into is not None:
            ctx.mark_dirty(into)
        return out, scores if options.return_scores else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_scores: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, kept, weights, row_start = ctx.saved_tensors
        dropout_p, seed, reuse_scores = ctx.options
        if grad_out is None:
            grad_out = torch.zeros_like(v[..., : q.shape[-2], :])
        grads = torch.ops.gptx.kept_gradients(grad_out, v, kept, weights, dropout_p, seed)
        spread, keys = _scatter(kept, weights, k.shape[-2], dropout_p, seed, v.dtype)
        grad_v = spread.transpose(-2, -1) @ grad_out

        grad_prev_scores = None
        if grad_scores is None and not ctx.needs_input_grad[3]:
            # Where the weights stood; everywhere else is 0 already.
            spread = spread.scatter_(-1, keys, grads.to(spread.dtype)).to(q.dtype)
        else:
            del spread, keys
            if grad_scores is None:
                shape = *q.shape[:3], k.shape[-2]
                grad_prev_scores = torch.zeros(shape, dtype=torch.float32, device=q.device)
            elif reuse_scores and grad_scores.is_contiguous():
                grad_prev_scores = grad_scores
            else:
                grad_prev_scores = grad_scores.clone(memory_format=torch.contiguous_format)
            torch.ops.gptx.add_kept_(grad_prev_scores, kept, grads, row_start)
            # Rounded as what comes of them will be: a GPU multiplies such numbers at full speed.
            spread = grad_prev_scores.to(q.dtype)
        if not ctx.needs_input_grad[3]:
            grad_prev_scores = None
        scale = q.shape[-1] ** -0.5
        grad_q = _products(spread, k.transpose(-2, -1), scale=scale)
        grad_k = _products(spread.transpose(-2, -1), q.transpose(-2, -1), scale=scale)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v, grad_prev_scores, None, None


def _products(
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    added_to: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return added_to + scale * a @ b^T, (b, h, m, n) float32, of (b, h, m, l) and (b, h, n, l).

    `out` may be `added_to`, if contiguous; None for new memory.
    """
    if out is None:
        out = a.new_empty(*a.shape[:3], b.shape[2], dtype=torch.float32)
        if added_to is not None:
            out.copy_(added_to)
    rounds = a.is_cuda and a.dtype in (torch.bfloat16, torch.float16)
    # A GPU multiplies such numbers as they are, and adds in float32; a CPU has to widen them.
    options = {"out_dtype": torch.float32} if rounds else {}
    if not rounds:
        a, b = a.float(), b.float()
    total = out.flatten(0, 1)
    torch.baddbmm(
        total,
        a.flatten(0, 1),
        b.flatten(0, 1).transpose(1, 2),
        beta=0.0 if added_to is None else 1.0,
        alpha=scale,
        out=total,
        **options,
    )
    return out


def _scatter(
    kept: Tensor, weights: Tensor, num_keys: int, dropout_p: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the (b, h, s, t) probabilities that kept keys stand for, and where those stand."""
    s = kept.shape[2]
    # A slot without a key writes its zero where the query sees nothing: to the last key, or to the
    # first for the query that sees the last.
    spare = torch.full((s, 1), num_keys - 1, device=kept.device)
    spare[-1:] = 0
    keys = torch.where(kept < 0, spare, kept.long())
    if dropout_p:
        weights = weights * survival(dropout_p, seed, keys, num_keys)
    probs = torch.zeros(*kept.shape[:3], num_keys, dtype=dtype, device=kept.device)
    return probs.scatter_(-1, keys, weights.to(dtype)), keys
