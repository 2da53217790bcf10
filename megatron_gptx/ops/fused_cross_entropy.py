"""What PyTorch must know of the compiled cross entropy: its shapes and its gradient.

Neither pass keeps anything as large as the logits: the forward pass reads them and remembers two
numbers per row, and the backward pass writes the gradient over them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD, BACKWARD = "gptx::cross_entropy", "gptx::cross_entropy_backward_"


def fused_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignored: int, reuse_logits: bool, variant: str = "best"
) -> Tensor:
    """Return what `cross_entropy` does; `variant` names one of `torch.ops.gptx.cpu_variants()`."""
    # Logits of fewer bits get a copy here, and autograd brings its gradient back to their type.
    wide = logits.float().contiguous()
    reuse_logits = reuse_logits or wide.data_ptr() != logits.data_ptr()
    return _CrossEntropy.apply(wide, labels.contiguous(), ignored, reuse_logits, variant)


class _CrossEntropy(torch.autograd.Function):
    """A function of its own, since PyTorch does not differentiate an op whose gradient is in place.

    A second backward pass through reused logits fails: autograd sees that they have changed.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignored: int, reuse_logits: bool, variant: str
    ) -> Tensor:
        total, sums = torch.ops.gptx.cross_entropy(logits, labels, ignored, variant)
        ctx.save_for_backward(logits, labels, sums)
        ctx.ignored, ctx.reuse_logits, ctx.variant = ignored, reuse_logits, variant
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, sums = ctx.saved_tensors
        grad_logits = logits if ctx.reuse_logits else logits.clone()
        torch.ops.gptx.cross_entropy_backward_(
            grad_logits, sums, labels, grad.item(), ctx.ignored, ctx.variant
        )
        torch.autograd.graph.increment_version(grad_logits)
        return grad_logits, None, None, None, None


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake(FORWARD, _forward_shapes)
    torch.library.register_fake(BACKWARD, _backward_shapes)


def _forward_shapes(
    logits: Tensor, labels: Tensor, ignored: int, variant: str = "best"
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(logits.shape[0], 2)


def _backward_shapes(
    logits: Tensor, sums: Tensor, labels: Tensor, scale: float, ignored: int, variant: str = "best"
) -> None:
    return None
