"""Multi-head self-attention: the projections around the attention op."""

import math

import torch
from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.projection import QKVProjection, StreamProjection
from megatron_gptx.ops.attention.dispatch import attention


class Attention(nn.Module):
    """Causal self-attention, optionally with ALiBi, top-k selection and carried scores."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.hidden_size
        self.qkv = QKVProjection(m, 3 * m, bias=config.biases)
        self.output = StreamProjection(m, m, bias=config.biases)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.top_k = config.attention.top_k
        self.dropout_p = config.attention.dropout
        self.backend: Backend = "reference"
        # No buffer: half() and bfloat16() cast those, and a rounded slope is another slope.
        self.slopes = alibi_slopes(config.num_heads) if config.position == "alibi" else None

    def forward(
        self,
        x: Tensor,
        prev_scores: Tensor | None,
        row_start: Tensor | None = None,
        *,
        return_scores: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (b, s, m) activations and (b, h, s, t) scores to the same pair.

        The scores are None in the first layer, and on return unless `return_scores`. Those that are
        returned may lie where `prev_scores` lay. `row_start` (b, s) int32 is the first key that
        each query sees; None for the first of all.
        """
        if self.slopes is not None:
            self.slopes = self.slopes.to(x.device)
        # Cut before it becomes heads: the three gradients are then joined in a single copy.
        q, k, v = (
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (b, h, s, d)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed, scores = attention(
            q,
            k,
            v,
            slopes=self.slopes,
            top_k=self.top_k,
            prev_scores=prev_scores,
            row_start=row_start,
            dropout_p=self.dropout_p if self.training else 0.0,
            return_scores=return_scores,
            reuse_scores=True,
            backend=self.backend,
        )
        return self.output(mixed.transpose(1, 2).flatten(2)), scores


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
