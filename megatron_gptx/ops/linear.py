"""Products with a weight matrix, with what follows them in one reading of the result."""

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops import library
from megatron_gptx.ops.fused_linear import Activation, FusedLinear


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return activation(x @ weight.T + bias).

    The products are oneDNN's, which on a CPU is quicker than the library behind PyTorch's own
    `linear`; GELU is a compiled kernel.

    Args:
        x: (..., m).
        weight: (f, m).
        bias: (f,), or None.
        activation: what to apply to the product, if anything.
        backend: `fused` for the above, `reference` for plain PyTorch, `auto` for the former where
            it can run.

    Returns:
        (..., f) in x's type.

    Raises:
        UserError: the kernels were asked for and cannot run.

    Source of GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    if backend != "reference":
        reason = unsupported(x.device.type)
        if reason is None and not library.loaded():
            reason = "its kernels are not loaded"
        if reason is None:
            y = FusedLinear.apply(x.flatten(0, -2), weight, bias, activation)
            return y.unflatten(0, x.shape[:-1])
        if backend == "fused":
            raise UserError(f"the fused linear cannot run: {reason}; set ops.backend to auto")
    return linear_reference(x, weight, bias, activation=activation)


def unsupported(device_type: str) -> str | None:
    """Return why the kernels cannot run on such a device, or None where they can, once loaded."""
    if device_type != "cpu":
        return f"there is no kernel for the device type {device_type}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch is built without oneDNN"
    return None


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = None
) -> Tensor:
    """The definition of `linear`, in plain PyTorch."""
    y = functional.linear(x, weight, bias)
    return functional.gelu(y) if activation == "gelu" else y
