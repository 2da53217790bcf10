"""Cross entropy of the next token."""

import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.batch import IGNORE


def token_loss(logits: Tensor, labels: Tensor, num_tokens: Tensor) -> Tensor:
    """Return these tokens' share of the mean loss, in nats per token.

    Divided by the tokens of the whole step instead of these alone, the shares of micro-batches and
    replicas add up to a mean in which every token weighs the same.

    Args:
        logits: (b, s, v).
        labels: (b, s) int64; positions equal to IGNORE do not count.
        num_tokens: 0-d, labels that count in the step.

    Returns:
        0-d, at least float32.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = functional.cross_entropy(
        logits.flatten(0, 1).to(wide), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / num_tokens
