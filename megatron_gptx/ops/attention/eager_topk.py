"""Top-k attention in plain PyTorch, composed for speed: what runs where no kernel does."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_gptx.ops.attention.dropout import draw_seed, survival
from megatron_gptx.ops.attention.masks import clear_unseen, key_offset, unseen
from megatron_gptx.ops.attention.options import AttentionOptions


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor | None]:
    """Return what `attention` returns; top_k is below the number of keys."""
    seed = draw_seed() if options.dropout_p else 0
    return _SparseAttention.apply(q, k, v, options.prev_scores, options, seed)


class _SparseAttention(torch.autograd.Function):
    """Top-k attention that keeps k numbers per query for the backward pass, not t.

    Half the time of what autograd makes of the same formulas: the softmax sees k numbers, the
    values of k keys are summed, and one (b, h, s, t) buffer serves the whole backward pass.
    """

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
        top_k, row_start, dropout_p = options.top_k, options.row_start, options.dropout_p
        assert top_k is not None, "without top_k, attention is dense"
        s, t = q.shape[-2], k.shape[-2]
        scores = _scores(q, k, prev_scores)
        z = _penalise(scores, options.slopes, in_place=not options.return_scores)
        if row_start is not None:
            z.masked_fill_(unseen(s, t, row_start, q.device), -torch.inf)
        kept, best = _select(z, top_k)
        # A short row keeps unseen keys too: they weigh exp(-inf).
        weights = (z.gather(-1, kept) - best.masked_fill(best == -torch.inf, 0)).exp_()
        total = weights.sum(-1, keepdim=True)
        weights /= total.masked_fill_(total == 0, 1)
        used = weights * survival(dropout_p, seed, kept, t) if dropout_p else weights
        ctx.save_for_backward(q, k, v, row_start, kept, weights)
        ctx.dropout = dropout_p, seed
        if options.return_scores:
            clear_unseen(scores, row_start)
        return _sum_of_kept(v, kept, used), scores if options.return_scores else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_scores: Tensor | None) -> tuple[Any, ...]:
        q, k, v, row_start, kept, weights = ctx.saved_tensors
        dropout_p, seed = ctx.dropout
        wide = weights.dtype
        survived = survival(dropout_p, seed, kept, k.shape[-2]) if dropout_p else None
        grad_out = grad_out.to(wide)

        pairs = grad_out @ v.to(wide).transpose(-2, -1)
        grad_weights = pairs.gather(-1, kept)
        if survived is not None:
            grad_weights *= survived
        pairs.zero_().scatter_(-1, kept, weights if survived is None else weights * survived)
        grad_v = pairs.transpose(-2, -1) @ grad_out

        grad_kept = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        if grad_scores is None:
            grad_prev_scores = pairs.zero_()
        else:
            grad_prev_scores = pairs.copy_(grad_scores)
            clear_unseen(grad_prev_scores, row_start)
        grad_prev_scores.scatter_add_(-1, kept, grad_kept)
        scale = q.shape[-1] ** -0.5
        grad_q = (grad_prev_scores @ k.to(wide)).mul_(scale)
        grad_k = (grad_prev_scores.transpose(-2, -1) @ q.to(wide)).mul_(scale)
        grads = grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return *grads, grad_prev_scores if ctx.needs_input_grad[3] else None, None, None


def _scores(q: Tensor, k: Tensor, prev_scores: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scaled, keys = q.to(wide) * q.shape[-1] ** -0.5, k.to(wide).transpose(-2, -1)
    if prev_scores is None:
        return scaled @ keys
    # Product and sum in one pass over the scores.
    return torch.baddbmm(
        prev_scores.flatten(0, 1), scaled.flatten(0, 1), keys.flatten(0, 1)
    ).view_as(prev_scores)


def _penalise(scores: Tensor, slopes: Tensor | None, *, in_place: bool) -> Tensor:
    """Return z, -inf for keys in a query's future, whatever their scores are."""
    s, t = scores.shape[-2:]
    offset = key_offset(s, t, scores.dtype, scores.device)
    future = offset > 0
    if slopes is not None:
        slope = slopes.to(scores.dtype).view(-1, 1, 1)
        scores = torch.addcmul(scores, slope, offset, out=scores if in_place else None)
    elif not in_place:
        scores = scores.clone()
    return scores.masked_fill_(future, -torch.inf)


def _select(z: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the (b, h, s, top_k) keys with the largest z, unordered, and the largest z itself."""
    best = z.topk(top_k + 1, dim=-1)
    kept = best.indices[..., :-1]
    threshold, runner_up = best.values[..., -2], best.values[..., -1]
    tied = (threshold == runner_up) & (runner_up > -torch.inf)
    if tied.any():
        rows, limit = z[tied], threshold[tied].unsqueeze(-1)
        # All above the limit are kept; at the limit, a larger position is a better rank.
        rank = torch.arange(z.shape[-1], device=z.device).where(rows == limit, -1)
        rank = rank.masked_fill(rows > limit, z.shape[-1])
        kept[tied] = rank.topk(top_k, dim=-1).indices
    return kept, best.values[..., :1]


def _sum_of_kept(v: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    """Return each query's weighted sum of its kept rows of v, (b, h, s, d).

    An embedding bag is exactly that, and touches k rows where a product with v would touch t.
    """
    b, h, t, _ = v.shape
    first_row = torch.arange(0, b * h * t, t, device=v.device).view(b, h, 1, 1)
    mixed = functional.embedding_bag(
        (kept + first_row).flatten(0, 2),
        v.flatten(0, 2),
        per_sample_weights=weights.to(v.dtype).flatten(0, 2),
        mode="sum",
    )
    return mixed.view(b, h, -1, v.shape[-1])
