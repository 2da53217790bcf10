"""Causal multi-head attention with ALiBi, RealFormer's carried scores and exact top-k selection.

`attention` picks the quickest form: compiled kernels, PyTorch's own, or a composition of PyTorch's
operations. `attention_reference` is the definition that they are tested against. The score of query
i for key j, one formula for every form:

    carry_ij = q_i . k_j / sqrt(d) + prev_scores_ij
    z_ij     = carry_ij + slope_h * (j - i)             where j <= i, else -inf
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops import library
from megatron_gptx.ops.fused_attention import fused_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None = None,
    top_k: int | None = None,
    prev_scores: Tensor | None = None,
    dropout_p: float = 0.0,
    return_scores: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Return what each query attends to, and the scores that the next layer adds to its own.

    The s queries are the last s of the t positions. A query keeps the `top_k` keys with its largest
    z, of equal ones the most recent, or all where there are fewer; the softmax runs over those. The
    choice is a constant to the gradient.

    Args:
        q: (b, h, s, d).
        k: (b, h, t, d), t >= s.
        v: (b, h, t, d).
        slopes: (h,) positive, penalty per token of distance; None for no ALiBi.
        top_k: keys per query; None keeps all.
        prev_scores: (b, h, s, t) sum over the layers before; None in the first.
        dropout_p: probability that a kept key's weight is dropped, drawn from torch's generator.
        return_scores: whether the next layer wants this one's scores.
        backend: `fused` for the compiled kernels, `reference` for plain PyTorch, `auto` for the
            kernels where they can run.

    Returns:
        The attended values, (b, h, s, d) in v's type; and the carry, (b, h, s, t), or None. The
        carry holds neither ALiBi nor mask and is at least float32: rounded to bf16, every seventh
        row would tie at its k-th key.

    Raises:
        UserError: the kernels were asked for and cannot run.

    Sources: Explicit Sparse Transformer, arXiv:1912.11637; RealFormer, arXiv:2012.11747; ALiBi,
    arXiv:2108.12409.
    """
    if backend != "reference":
        reason = unsupported(q.device.type, q.dtype, top_k=top_k, dropout_p=dropout_p)
        if reason is None and not library.loaded():
            reason = "its kernels are not loaded"
        if reason is None and top_k is not None:
            return fused_attention(
                q,
                k,
                v,
                slopes=slopes,
                top_k=top_k,
                prev_scores=prev_scores,
                return_scores=return_scores,
            )
        if backend == "fused":
            raise UserError(f"the fused attention cannot run: {reason}; set ops.backend to auto")
    if top_k is not None and top_k < k.shape[-2]:
        return _TopKAttention.apply(q, k, v, slopes, top_k, prev_scores, dropout_p, return_scores)
    if prev_scores is None and not return_scores:
        return _dense_attention(q, k, v, slopes, dropout_p), None
    return attention_reference(
        q,
        k,
        v,
        slopes=slopes,
        prev_scores=prev_scores,
        dropout_p=dropout_p,
        return_scores=return_scores,
    )


def unsupported(
    device_type: str, dtype: torch.dtype, *, top_k: int | None, dropout_p: float
) -> str | None:
    """Return why the kernels cannot attend over such a q, or None where they can, once loaded."""
    if device_type != "cpu":
        return f"there is no kernel for the device type {device_type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if top_k is None:
        return "without top_k, attention is dense and PyTorch's"
    if dropout_p > 0:
        return "the kernels do not drop attention weights"
    return None


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None = None,
    top_k: int | None = None,
    prev_scores: Tensor | None = None,
    dropout_p: float = 0.0,
    return_scores: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `attention`: a line per step, gradients by autograd, t numbers per row."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.shape[-1] ** -0.5 * (q.to(wide) @ k.to(wide).transpose(-2, -1))
    if prev_scores is not None:
        scores = scores + prev_scores
    # Added after prev_scores: inside them, layer n would feel the penalty n times.
    z = scores + _position_bias(q, k, slopes, wide)
    if top_k is not None:
        # Read from the right, a stable sort puts the most recent of equal keys first.
        ranking = z.flip(-1).argsort(dim=-1, descending=True, stable=True)
        kept = z.shape[-1] - 1 - ranking[..., :top_k]
        left = torch.ones_like(z, dtype=torch.bool).scatter(-1, kept, False)
        z = z.masked_fill(left, -torch.inf)
    weights = functional.dropout(z.softmax(dim=-1), dropout_p).to(v.dtype)
    return weights @ v, scores if return_scores else None


def _position_bias(q: Tensor, k: Tensor, slopes: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ALiBi's penalty and the causal mask, (h, s, t), or (1, s, t) without ALiBi."""
    offset = _key_offset(q, k, dtype)
    slope = offset.new_zeros(1) if slopes is None else slopes.to(dtype)
    return (slope.view(-1, 1, 1) * offset).masked_fill(offset > 0, -torch.inf)


def _key_offset(q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (s, t) offsets j - i, in tokens: positive for keys in a query's future."""
    keys = torch.arange(k.shape[-2], device=q.device, dtype=dtype)
    return keys - keys[k.shape[-2] - q.shape[-2] :, None]


def _dense_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, dropout_p: float
) -> Tensor:
    """Attend to all keys through PyTorch's fused kernels."""
    if slopes is None and q.shape == k.shape:
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    # is_causal would align the first query with the first key; here the last ones match.
    wide = torch.promote_types(q.dtype, torch.float32)
    # A bias of another type than q's is an error in some of those kernels, and silently read as
    # q's type in others (PyTorch pull request 191612).
    bias = _position_bias(q, k, slopes, wide).to(q.dtype)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias[None], dropout_p=dropout_p
    )


class _TopKAttention(torch.autograd.Function):
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
        slopes: Tensor | None,
        top_k: int,
        prev_scores: Tensor | None,
        dropout_p: float,
        return_scores: bool,
    ) -> tuple[Tensor, Tensor | None]:
        scores = _scores(q, k, prev_scores)
        z = _penalise(scores, q, k, slopes, in_place=not return_scores)
        kept, best = _select(z, top_k)
        # A short row keeps keys of its future too: they weigh exp(-inf).
        weights = (z.gather(-1, kept) - best).exp_()
        weights /= weights.sum(-1, keepdim=True)
        survival = functional.dropout(torch.ones_like(weights), dropout_p) if dropout_p else None
        ctx.save_for_backward(q, k, v, kept, weights, survival)
        used = weights if survival is None else weights * survival
        return _sum_of_kept(v, kept, used), scores if return_scores else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_scores: Tensor | None) -> tuple[Any, ...]:
        q, k, v, kept, weights, survival = ctx.saved_tensors
        used = weights if survival is None else weights * survival
        wide = weights.dtype
        grad_out = grad_out.to(wide)

        pairs = grad_out @ v.to(wide).transpose(-2, -1)
        grad_weights = pairs.gather(-1, kept)
        if survival is not None:
            grad_weights *= survival
        pairs.zero_().scatter_(-1, kept, used)
        grad_v = pairs.transpose(-2, -1) @ grad_out

        grad_kept = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        pairs.zero_() if grad_scores is None else pairs.copy_(grad_scores)
        pairs.scatter_add_(-1, kept, grad_kept)
        scale = q.shape[-1] ** -0.5
        grad_q = (pairs @ k.to(wide)).mul_(scale)
        grad_k = (pairs.transpose(-2, -1) @ q.to(wide)).mul_(scale)
        grad_prev = pairs if ctx.needs_input_grad[5] else None
        grads = grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return *grads, None, None, grad_prev, None, None


def _scores(q: Tensor, k: Tensor, prev_scores: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scaled, keys = q.to(wide) * q.shape[-1] ** -0.5, k.to(wide).transpose(-2, -1)
    if prev_scores is None:
        return scaled @ keys
    # Product and sum in one pass over the scores.
    return torch.baddbmm(
        prev_scores.flatten(0, 1), scaled.flatten(0, 1), keys.flatten(0, 1)
    ).view_as(prev_scores)


def _penalise(
    scores: Tensor, q: Tensor, k: Tensor, slopes: Tensor | None, *, in_place: bool
) -> Tensor:
    """Return z: one pass over the scores, since a positive slope times -inf masks as well."""
    offset = _key_offset(q, k, scores.dtype)
    future = offset > 0
    slope = offset.new_ones(1) if slopes is None else slopes.to(scores.dtype)
    offset = (torch.zeros_like(offset) if slopes is None else offset).masked_fill(
        future, -torch.inf
    )
    out = scores if in_place else None
    return torch.addcmul(scores, slope.view(-1, 1, 1), offset, out=out)


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
