"""What PyTorch must know of the compiled parts of a product with a weight matrix.

The whole, `torch.ops.gptx.linear`, consists of them and of PyTorch's own operations.
"""

from typing import Literal

import torch
from torch import Tensor

Activation = Literal["gelu"] | None


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake("gptx::product", _product_shapes)
    torch.library.register_fake("gptx::bias_gelu_", _bias_gelu_shapes)
    torch.library.register_fake("gptx::gelu_backward", _gelu_backward_shapes)
    torch.library.register_fake("gptx::add_weight_gradient_", _add_weight_gradient_shapes)


def _product_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, variant: str = "best"
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _bias_gelu_shapes(x: Tensor, bias: Tensor | None, variant: str = "best") -> Tensor:
    return x.new_empty(x.shape)


def _gelu_backward_shapes(grad: Tensor, x: Tensor, variant: str = "best") -> Tensor:
    return x.new_empty(x.shape)


def _add_weight_gradient_shapes(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, variant: str = "best"
) -> None:
    return None
