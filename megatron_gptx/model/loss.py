"""Cross entropy of the next token."""

from torch import Tensor, nn

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.cross_entropy import cross_entropy


class TokenLoss(nn.Module):
    """These tokens' share of the mean loss, in nats per token.

    Divided by the tokens of the whole step instead of these alone, the shares of micro-batches and
    replicas add up to a mean in which every token weighs the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backend: Backend = "reference"

    def forward(self, logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Return the share, 0-d, at least float32.

        Args:
            logits: (b, s, v); the backward pass may use their memory for the gradient.
            target: labels, (b, s) int64, of which those equal to IGNORE do not count; and how many
                labels count in the step, 0-d.
        """
        labels, num_tokens = target
        total = cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignored=IGNORE,
            reuse_logits=True,
            backend=self.backend,
        )
        return total / num_tokens
