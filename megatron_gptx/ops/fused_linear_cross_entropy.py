"""Cross entropy behind a projection, and what PyTorch must know of its compiled part.

Each block of rows becomes logits, a loss, the gradient of the logits where they were, and its share
of the gradients of x and weight, before the next block begins.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one block: a part of the third-level cache.
BLOCK = 512 * 1024


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
