"""Cross entropy of the next token."""

from torch import Tensor

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.linear_cross_entropy import linear_cross_entropy

# Labels, (b, s) int64, of which those equal to IGNORE do not count; and how many count in the step.
Target = tuple[Tensor, Tensor]


def token_loss(x: Tensor, weight: Tensor, target: Target, *, backend: Backend) -> Tensor:
    """Return these tokens' share of the mean loss, in nats per token.

    Divided by the tokens of the whole step instead of these alone, the shares of micro-batches and
    replicas add up to a mean in which every token weighs the same.

    Args:
        x: (b, s, m), what the head projects.
        weight: (v, m), the head's.
        target: what is to be predicted; the number is 0-d.
        backend: how to compute it.

    Returns:
        0-d, at least float32.
    """
    labels, num_tokens = target
    total = linear_cross_entropy(
        x.flatten(0, 1), weight, labels.flatten(), ignored=IGNORE, backend=backend
    )
    return total / num_tokens
