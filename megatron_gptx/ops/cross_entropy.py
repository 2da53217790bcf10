"""Cross entropy between logits and labels, summed over positions."""

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops import library
from megatron_gptx.ops.fused_cross_entropy import fused_cross_entropy


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignored: int,
    reuse_logits: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Return the sum of -log softmax(logits)[label] over positions, in nats.

    Args:
        logits: (n, v).
        labels: (n,) int64 in [0, v), or `ignored`.
        ignored: the label of a position that does not count.
        reuse_logits: whether the gradient may take the memory of the logits, whose values are lost
            after the backward pass then.
        backend: `fused` for the compiled kernel, `reference` for plain PyTorch, `auto` for the
            kernel where it can run.

    Returns:
        0-d, at least float32.

    Raises:
        UserError: the kernel was asked for and cannot run.
    """
    if backend != "reference":
        reason = unsupported(logits.device.type, logits.dtype)
        if reason is None and not library.loaded():
            reason = "its kernels are not loaded"
        if reason is None:
            return fused_cross_entropy(logits, labels, ignored=ignored, reuse_logits=reuse_logits)
        if backend == "fused":
            raise UserError(f"the fused loss cannot run: {reason}; set ops.backend to auto")
    return cross_entropy_reference(logits, labels, ignored=ignored)


def unsupported(device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the kernel cannot take such logits, or None where it can, once loaded."""
    if device_type != "cpu":
        return f"there is no kernel for the device type {device_type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernel takes float32, bfloat16 and float16, not {dtype}"
    return None


def cross_entropy_reference(logits: Tensor, labels: Tensor, *, ignored: int) -> Tensor:
    """The definition of `cross_entropy`, in plain PyTorch."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), labels, ignore_index=ignored, reduction="sum")
