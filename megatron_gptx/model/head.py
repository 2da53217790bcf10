"""The end of the model: the final norm, and activations to logits or to the loss.

With a target a head returns the loss, for which the logits of all positions need not exist at once.
"""

from torch import Tensor, nn

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.embedding import Table
from megatron_gptx.model.projection import HeadProjection
from megatron_gptx.ops.layer_norm import LayerNorm
from megatron_gptx.ops.linear import linear
from megatron_gptx.ops.linear_cross_entropy import linear_cross_entropy

# Labels, (b, s) int64, of which those equal to IGNORE do not count; and how many count in the step.
Target = tuple[Tensor, Tensor]


class Head(HeadProjection):
    """The output projection, which never has a bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        prev_scores: None,
        row_start: Tensor | None = None,
        target: Target | None = None,
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to logits (b, s, v), or to the 0-d loss."""
        if target is not None:
            return token_loss(x, self.weight, target, backend=self.backend), None
        return super().forward(x), None


class TiedHead(nn.Module):
    """The output projection by the embedding's token table.

    The table has the embedding's name, `tokens`, so `project` works on either module: a pipeline
    stage that holds both uses the embedding alone, and a stage that holds only the head does not
    carry a table of positions as well.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = Table(config.vocab_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        prev_scores: None,
        row_start: Tensor | None = None,
        target: Target | None = None,
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to logits (b, s, v), or to the 0-d loss."""
        return project(self, x, prev_scores, row_start, target)


def project(
    module: nn.Module,
    x: Tensor,
    prev_scores: None,
    row_start: Tensor | None = None,
    target: Target | None = None,
) -> tuple[Tensor, None]:
    """Run the tied head with the token table of an Embedding or a TiedHead."""
    table = module.get_submodule("tokens")
    assert isinstance(table, Table)
    if target is not None:
        return token_loss(x, table.weight, target, backend=table.backend), None
    return linear(x, table.weight, backend=table.backend), None


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


class FinalNorm(LayerNorm):
    """LayerNorm as a layer of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size)

    def forward(  # type: ignore[override]
        self, x: Tensor, prev_scores: Tensor | None, row_start: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to normalised (b, s, m); the scores end here."""
        return super().forward(x), None
