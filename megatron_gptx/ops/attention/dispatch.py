"""Causal multi-head attention with ALiBi, RealFormer's carried scores and exact top-k selection.

`attention` picks the quickest form: compiled kernels, PyTorch's own, or a composition of PyTorch's
operations. `attention_reference` is the definition that they are tested against. The score of query
i for key j, one formula for every form:

    scores_ij = q_i . k_j / sqrt(d) + prev_scores_ij
    z_ij      = scores_ij + slope_h * (j - i)             where row_start_i <= j <= i, else -inf
"""

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.attention.cpu_kernels import fused_attention
from megatron_gptx.ops.attention.cuda_kernels import composed_attention
from megatron_gptx.ops.attention.dropout import draw_seed, survival
from megatron_gptx.ops.attention.eager_topk import sparse_attention
from megatron_gptx.ops.attention.masks import check_selection, key_offset, unseen
from megatron_gptx.ops.attention.options import AttentionOptions
from megatron_gptx.ops.attention.topk_softmax import MOST_CUDA_KEYS, keep_best
from megatron_gptx.ops.kernels import library
from megatron_gptx.ops.kernels.choice import runs_fused


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None = None,
    top_k: int | None = None,
    prev_scores: Tensor | None = None,
    row_start: Tensor | None = None,
    dropout_p: float = 0.0,
    return_scores: bool = False,
    reuse_scores: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Return what each query attends to, and the scores that the next layer adds to its own.

    The s queries are the last s of the t positions. A query selects the `top_k` keys with its
    largest z, or all keys if it sees fewer. Of equal z the most recent key wins. The softmax runs
    over the selected keys. The gradient treats the selection as a constant. A query that sees no
    key gets 0.

    Args:
        q: (b, h, s, d).
        k: (b, h, t, d), t >= s.
        v: (b, h, t, d).
        slopes, top_k, prev_scores, row_start, dropout_p, return_scores, reuse_scores: see
            `AttentionOptions`.
        backend: `fused` for the compiled kernels, `reference` for plain PyTorch, `auto` for the
            kernels where they can run, and a warning where they cannot.

    Returns:
        The attended values, (b, h, s, d) in v's type; and the scores, (b, h, s, t), or None. The
        scores hold no ALiBi and are 0 for masked keys. They are at least float32: rounded to bf16,
        every seventh row would tie at its k-th key.

    Raises:
        ValueError: there are more queries than keys, or top_k is below 1.
        UserError: the kernels were asked for and cannot run.

    Sources: Explicit Sparse Transformer, arXiv:1912.11637; RealFormer, arXiv:2012.11747; ALiBi,
    arXiv:2108.12409.
    """
    check_selection(q.shape[-2], k.shape[-2], top_k)
    # Without top_k there is no kernel of ours, and PyTorch's are no lesser choice to warn of.
    asked = "reference" if top_k is None and backend == "auto" else backend
    reason = unsupported(q.device.type, q.dtype, top_k=top_k, num_keys=k.shape[-2])
    options = AttentionOptions(
        slopes=slopes,
        top_k=top_k,
        prev_scores=prev_scores,
        row_start=row_start,
        dropout_p=dropout_p,
        return_scores=return_scores,
        reuse_scores=reuse_scores,
    )
    if runs_fused("attention", asked, reason, q.device):
        form = composed_attention if q.is_cuda else fused_attention
        return form(q, k, v, options)
    if top_k is not None and top_k < k.shape[-2]:
        return sparse_attention(q, k, v, options)
    # Where weights of a selection drop, they are drawn as other backends draw them.
    dense = top_k is None or not dropout_p
    if dense and prev_scores is None and not return_scores:
        return _dense_attention(q, k, v, options), None
    return attention_reference(
        q,
        k,
        v,
        slopes=slopes,
        prev_scores=prev_scores,
        row_start=row_start,
        dropout_p=dropout_p,
        return_scores=return_scores,
    )


def unsupported(
    device_type: str, dtype: torch.dtype, *, top_k: int | None, num_keys: int
) -> str | None:
    """Return why the kernels cannot attend over such a q, or None where they can, once loaded.

    Whether they were compiled for a GPU is known when they are loaded.
    """
    if device_type not in ("cpu", "cuda"):
        return f"there is no kernel for the device type {device_type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if top_k is None:
        return "without top_k, attention is dense and PyTorch's"
    if device_type == "cuda" and num_keys > MOST_CUDA_KEYS:
        return f"the CUDA kernel takes up to {MOST_CUDA_KEYS} keys, not {num_keys}"
    return library.unusable_on(torch.device(device_type)) if library.loaded() else None


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None = None,
    top_k: int | None = None,
    prev_scores: Tensor | None = None,
    row_start: Tensor | None = None,
    dropout_p: float = 0.0,
    return_scores: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `attention`: a line per step, gradients by autograd, t numbers per row."""
    s, t = q.shape[-2], k.shape[-2]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.shape[-1] ** -0.5 * (q.to(wide) @ k.to(wide).transpose(-2, -1))
    if prev_scores is not None:
        scores = scores + prev_scores
    scores = scores.masked_fill(unseen(s, t, row_start, q.device), 0)
    # Added after prev_scores: inside them, layer n would feel the penalty n times.
    z = scores + _position_bias(s, t, slopes, row_start, wide, q.device)
    if top_k is not None:
        z = keep_best(z, top_k)
    # A softmax over nothing would be no number, and so would its gradient.
    nothing = z.amax(dim=-1, keepdim=True) == -torch.inf
    weights = z.masked_fill(nothing, 0).softmax(dim=-1)
    if dropout_p:
        keys = torch.arange(t, device=q.device).expand_as(weights)
        weights = weights * survival(dropout_p, draw_seed(), keys, t)
    out = (weights.to(v.dtype) @ v).masked_fill(nothing, 0)
    return out, scores if return_scores else None


def _position_bias(
    s: int,
    t: int,
    slopes: Tensor | None,
    row_start: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return ALiBi's penalty, -inf for unseen keys: (1 or h, s, t), or (b, 1 or h, s, t)."""
    bias = torch.zeros(1, s, t, dtype=dtype, device=device)
    if slopes is not None:
        bias = slopes.to(dtype).view(-1, 1, 1) * key_offset(s, t, dtype, device)
    return bias.masked_fill(unseen(s, t, row_start, device), -torch.inf)


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Attend to all keys through PyTorch's fused kernels."""
    slopes, row_start, dropout_p = options.slopes, options.row_start, options.dropout_p
    if slopes is None and row_start is None and q.shape == k.shape:
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    s, t = q.shape[-2], k.shape[-2]
    # is_causal would align the first query with the first key; here the last ones match.
    wide = torch.promote_types(q.dtype, torch.float32)
    last = torch.arange(t - s, t, device=q.device)
    # A query that sees nothing looks at itself here, and is set to 0 below.
    start = None if row_start is None else torch.minimum(row_start, last)
    # A bias of another type than q's is an error in some of those kernels, and silently read as
    # q's type in others (PyTorch pull request 191612).
    bias = _position_bias(s, t, slopes, start, wide, q.device).to(q.dtype)
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias if bias.ndim == 4 else bias[None], dropout_p=dropout_p
    )
    if row_start is None:
        return out
    return out.masked_fill((row_start > last)[:, None, :, None], 0)
