"""Softmax over each row's k largest scores: causal, with ALiBi and document boundaries.

The score of query i for key j is given; z_ij = score_ij + slope_h * (j - i) decides, and a query
sees the keys row_start_i <= j <= i.
"""

import torch
from torch import Tensor

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.attention.dropout import survival
from megatron_gptx.ops.attention.masks import check_selection, key_offset, unseen
from megatron_gptx.ops.kernels.choice import runs_fused

# kMostKeys of csrc/cuda/topk_softmax_launch.h
MOST_CUDA_KEYS = 16384


def topk_softmax(
    scores: Tensor,
    top_k: int,
    *,
    slopes: Tensor | None = None,
    row_start: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Return attention probabilities that are zero outside each row's k largest z.

    A row keeps exactly min(top_k, keys it sees); of equal z the most recent key wins. The choice is
    a constant to the gradient. A row that sees no key is zero. In a row in which a z is no number,
    the kept probabilities are none either.

    Args:
        scores: (b, h, s, t); the s queries are the last of the t positions.
        top_k: keys per query, at least 1.
        slopes: (h,) float32, ALiBi's penalty per token of distance; None for none.
        row_start: (b, s) int32, first key that each query sees; None for the first of all.
        dropout_p: probability that a kept probability is dropped.
        seed: 63 bits that decide which.
        backend: `fused` for the compiled kernel, `reference` for plain PyTorch, `auto` for the
            kernel where it can run, and a warning where it cannot.

    Returns:
        (b, h, s, t) in the scores' type.

    Raises:
        ValueError: there are more queries than keys, or top_k is below 1.
        UserError: the kernel was asked for and cannot run.

    Source: Zhao et al. 2019, "Explicit Sparse Transformer", arXiv:1912.11637, section 3.
    """
    check_selection(scores.shape[-2], scores.shape[-1], top_k)
    if runs_fused("top-k softmax", backend, unsupported(scores), scores.device):
        probs, _, _ = torch.ops.gptx.topk_softmax(scores, slopes, top_k, row_start, dropout_p, seed)
        return probs
    return topk_softmax_reference(
        scores, top_k, slopes=slopes, row_start=row_start, dropout_p=dropout_p, seed=seed
    )


def unsupported(scores: Tensor) -> str | None:
    """Return why the kernel cannot take these scores, or None where it can, once loaded."""
    if scores.device.type not in ("cpu", "cuda"):
        return f"there is no kernel for the device type {scores.device.type}"
    if scores.is_cuda and scores.shape[-1] > MOST_CUDA_KEYS:
        return f"the CUDA kernel takes up to {MOST_CUDA_KEYS} keys, not {scores.shape[-1]}"
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels take float32, bfloat16 and float16, not {scores.dtype}"
    return None


def topk_softmax_reference(
    scores: Tensor,
    top_k: int,
    *,
    slopes: Tensor | None = None,
    row_start: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The definition, in plain PyTorch: what the kernels are tested against."""
    s, t = scores.shape[-2:]
    wide = torch.promote_types(scores.dtype, torch.float32)
    z = scores.to(wide)
    if slopes is not None:
        z = z + slopes.to(wide).view(-1, 1, 1) * key_offset(s, t, wide, scores.device)
    z = keep_best(z.masked_fill(unseen(s, t, row_start, scores.device), -torch.inf), top_k)
    # A softmax over nothing would be no number, and so would its gradient.
    nothing = (z == -torch.inf).all(dim=-1, keepdim=True)
    probs = z.masked_fill(nothing, 0).softmax(dim=-1).masked_fill(nothing, 0)
    if dropout_p:
        keys = torch.arange(t, device=scores.device).expand_as(probs)
        probs = probs * survival(dropout_p, seed, keys, t)
    return probs.to(scores.dtype)


def keep_best(z: Tensor, top_k: int) -> Tensor:
    """Return z with all but each row's k largest at -inf, of equal ones the most recent kept."""
    # Read from the right, a stable sort puts the most recent of equal keys first.
    ranking = z.flip(-1).argsort(dim=-1, descending=True, stable=True)
    kept = z.shape[-1] - 1 - ranking[..., :top_k]
    left = torch.ones_like(z, dtype=torch.bool).scatter(-1, kept, False)
    return z.masked_fill(left, -torch.inf)
