"""Attention with linear biases: how much each head minds distance."""

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """Return each head's penalty per token of distance.

    Head i of n gets 2^(-8(i+1)/n) when n is a power of two. Otherwise the slopes of the nearest
    smaller power of two come first, then every other slope of the next one, as in the authors'
    code.

    Args:
        num_heads: heads in the layer.

    Returns:
        (h,) float32 on the CPU, positive, in units of score per token.

    Raises:
        ValueError: num_heads is below 1.

    Source: Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409, section 3.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    below = 2 ** int(math.log2(num_heads))
    between = _geometric(2 * below)[::2][: num_heads - below]
    # The device is explicit because layers are built under torch.device("meta").
    return torch.tensor(_geometric(below) + between, dtype=torch.float32, device="cpu")


def _geometric(n: int) -> list[float]:
    return [2 ** (-8 * (i + 1) / n) for i in range(n)]
