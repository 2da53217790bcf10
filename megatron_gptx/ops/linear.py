"""Products with a weight matrix, with what follows them in one reading of the result."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.kernels.choice import runs_fused

Activation = Literal["gelu"] | None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return activation(x @ weight.T + bias).

    The kernels multiply where the CPU has AVX2 and x many rows, PyTorch's `linear` elsewhere: which
    depends on shapes and the CPU alone. GELU and the weights' gradients are kernels too.

    Args:
        x: (..., m).
        weight: (f, m).
        bias: (f,), or None.
        activation: what to apply to the product, if anything.
        backend: `fused` for the above, `reference` for plain PyTorch, `auto` for the former where
            it can run, and a warning where it cannot.

    Returns:
        (..., f) in x's type.

    Raises:
        UserError: the kernels were asked for and cannot run.

    Source of GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    if runs_fused("linear", backend, unsupported(x.device.type, x.dtype), x.device):
        m, f = x.shape[-1], weight.shape[0]
        if weight.shape != (f, m) or (bias is not None and bias.shape != (f,)):
            raise ValueError(
                f"weight must be (f, m) and bias (f,) for x (..., {m}), got "
                f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            )
        return torch.ops.gptx.linear(x, weight, bias, activation)
    return linear_reference(x, weight, bias, activation=activation)


def unsupported(device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot take such an x, or None where they can, once loaded."""
    if device_type != "cpu":
        return f"there is no kernel for the device type {device_type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    return None


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = None
) -> Tensor:
    """The definition of `linear`, in plain PyTorch."""
    y = functional.linear(x, weight, bias)
    return functional.gelu(y) if activation == "gelu" else y


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
