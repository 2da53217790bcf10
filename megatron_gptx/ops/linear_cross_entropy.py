"""Cross entropy between a projection to logits and labels, summed over positions."""

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.fused_linear_cross_entropy import fused_linear_cross_entropy
from megatron_gptx.ops.kernels.choice import runs_fused
from megatron_gptx.ops.linear import unsupported


def linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, *, ignored: int, backend: Backend = "auto"
) -> Tensor:
    """Return the sum of -log softmax(x @ weight.T)[label] over positions, in nats.

    The kernels compute a few rows of logits at a time, which never leave the cache: no (n, v)
    tensor exists.

    Args:
        x: (n, m).
        weight: (v, m).
        labels: (n,) int64 in [0, v), or `ignored`.
        ignored: the label of a position that does not count.
        backend: `fused` for the kernels, `reference` for plain PyTorch, `auto` for the kernels
            where they can run, and a warning where they cannot.

    Returns:
        0-d, at least float32.

    Raises:
        UserError: the kernels were asked for and cannot run.
    """
    if runs_fused("loss", backend, unsupported(x.device.type, x.dtype), x.device):
        return fused_linear_cross_entropy(x, weight, labels, ignored=ignored)
    return linear_cross_entropy_reference(x, weight, labels, ignored=ignored)


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, labels: Tensor, *, ignored: int
) -> Tensor:
    """The definition of `linear_cross_entropy`, in plain PyTorch."""
    logits = functional.linear(x, weight)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), labels, ignore_index=ignored, reduction="sum")
