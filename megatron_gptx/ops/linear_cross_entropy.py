"""Cross entropy between a projection to logits and labels, summed over positions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.kernels.choice import runs_fused
from megatron_gptx.ops.linear import unsupported

# Logits of one block: a part of the third-level cache.
BLOCK = 512 * 1024


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


def fused_linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, *, ignored: int, variant: str = "best"
) -> Tensor:
    """Return what `linear_cross_entropy` does, by one of `torch.ops.gptx.cpu_variants()`."""
    # Gradients are made before the scale of the loss is known: float16 could not hold them.
    x, weight = x.float().contiguous(), weight.float().contiguous()
    return _LinearCrossEntropy.apply(
        x, weight, labels.contiguous(), ignored, variant, torch.is_grad_enabled()
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        labels: Tensor,
        ignored: int,
        variant: str,
        differentiate: bool,
    ) -> Tensor:
        needs_x, needs_weight = (differentiate and need for need in ctx.needs_input_grad[:2])
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        # In float64, for there may be thousands of blocks.
        total = torch.zeros((), dtype=torch.float64)
        rows = max(BLOCK // max(len(weight), 1), 16)
        for first in range(0, len(x), rows):
            block, block_labels = x[first : first + rows], labels[first : first + rows]
            logits = torch.ops.gptx.product(block, weight, None, variant)
            # The logits become their gradient, also where nobody asks for it: they end here.
            total += torch.ops.gptx.cross_entropy_(logits, block_labels, ignored, variant)
            if grad_x is not None:
                grad_x[first : first + rows] = torch.ops.gptx.product(
                    logits, weight.t(), None, variant
                )
            if grad_weight is not None:
                torch.ops.gptx.add_weight_gradient_(logits, block, grad_weight, None, variant)
        ctx.save_for_backward(grad_x, grad_weight)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if unit is None else grad * unit for unit in ctx.saved_tensors)
        return *grads, None, None, None, None


def register() -> None:
    """Tell PyTorch; once, after the library that defines the op has been loaded."""
    torch.library.register_fake("gptx::cross_entropy_", _shapes)


def _shapes(logits: Tensor, labels: Tensor, ignored: int, variant: str = "best") -> Tensor:
    return logits.new_empty(())
