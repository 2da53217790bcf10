"""How accurate is accurate enough."""

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_as_accurate(actual: Tensor, reference: Tensor, exact: Tensor) -> None:
    """Fail unless `actual` is at most twice as far from `exact` as `reference` is.

    `exact` is the reference run in float64. Measuring against the reference's own rounding error
    leaves no tolerance to choose, so none can be loosened to make a test pass.
    """
    error = (actual.double() - exact).abs().max().item()
    allowed = 2 * (reference.double() - exact).abs().max().item()
    assert error <= allowed + 1e-7, f"error {error:.3g} exceeds {allowed:.3g}"


def assert_all_as_accurate(
    actual: Sequence[Tensor], reference: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """Apply the same rule to many tensors at once, each relative to its own largest element.

    The largest error of a few numbers is a matter of luck, of many it is a steady measure.
    """
    scales = [e.abs().max().item() or 1.0 for e in exact]

    def pool(tensors: Sequence[Tensor]) -> Tensor:
        pairs = zip(tensors, scales, strict=True)
        return torch.cat([(tensor.double() / scale).flatten() for tensor, scale in pairs])

    assert_as_accurate(pool(actual), pool(reference), pool(exact))
