"""LayerNorm, through Apex's kernel where Apex is installed and the input is on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Normalise the last dimension of (..., m), with a learned scale and shift.

    Source: Ba et al. 2016, "Layer Normalization", arXiv:1607.06450.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., m) to the same shape."""
        kernel = _apex_kernel()[0] if x.is_cuda else None
        if kernel is None:
            return super().forward(x)
        return kernel(x, self.weight, self.bias, self.normalized_shape, self.eps)


def layer_norm_note(device_type: str) -> str:
    """Return which implementation runs on a type of device, and why."""
    if device_type != "cuda":
        return "LayerNorm: torch's, on the CPU"
    kernel, problem = _apex_kernel()
    return "LayerNorm: Apex's" if kernel else f"LayerNorm: torch's fused kernel, since {problem}"


@cache
def _apex_kernel() -> tuple[Callable[..., Any] | None, str]:
    try:
        import fused_layer_norm_cuda  # noqa: F401  Apex imports without it, and fails when used
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine
    except ImportError as error:
        return None, f"Apex cannot be imported ({error})"
    return fused_layer_norm_affine, ""
