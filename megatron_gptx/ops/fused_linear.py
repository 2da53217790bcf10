"""The fused product with a weight matrix, and what PyTorch must know of its compiled part."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Activation = Literal["gelu"] | None


class FusedLinear(torch.autograd.Function):
    """Between the two passes lies what the activation is applied to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        variant: str = "best",
    ) -> Tensor:
        ctx.variant = variant
        if activation is None:
            ctx.save_for_backward(x, weight)
            return product(x, weight, bias)
        if x.dtype == torch.float32:
            before, rest = product(x, weight), bias
        else:  # rounded with the bias in it, which is once
            before, rest = product(x, weight, bias).float(), None
        ctx.save_for_backward(x, weight, before)
        return torch.ops.gptx.bias_gelu_(before, rest, variant).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *before = ctx.saved_tensors
        if before:
            grad = torch.ops.gptx.gelu_backward(
                grad.float().contiguous(), before[0], ctx.variant
            ).to(x.dtype)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = product(grad, weight.t()) if needs_x else None
        if needs_weight and x.dtype == torch.float32:
            grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
            grad_bias = grad.new_zeros(len(weight)) if needs_bias else None
            torch.ops.gptx.add_weight_gradient_(
                grad.contiguous(), x.contiguous(), grad_weight, grad_bias, ctx.variant
            )
            return grad_x, grad_weight, grad_bias, None, None
        return (
            grad_x,
            grad.t() @ x if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            None,
            None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias."""
    if x.dtype != torch.float32:  # PyTorch itself takes oneDNN's
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake("gptx::bias_gelu_", _bias_gelu_shapes)
    torch.library.register_fake("gptx::gelu_backward", _gelu_backward_shapes)
    torch.library.register_fake("gptx::add_weight_gradient_", _add_weight_gradient_shapes)


def _bias_gelu_shapes(x: Tensor, bias: Tensor | None, variant: str = "best") -> Tensor:
    return x.new_empty(x.shape)


def _gelu_backward_shapes(grad: Tensor, x: Tensor, variant: str = "best") -> Tensor:
    return x.new_empty(x.shape)


def _add_weight_gradient_shapes(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str = "best"
) -> None:
    return None
