"""Activations to logits, or to the loss.

With a target a head returns the loss, for which the logits of all positions need not exist at once.
"""

from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.embedding import Table
from megatron_gptx.model.loss import Target, token_loss
from megatron_gptx.model.projection import HeadProjection
from megatron_gptx.ops.linear import linear


class Head(HeadProjection):
    """The output projection, which never has a bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def forward(  # type: ignore[override]
        self, x: Tensor, carry: None, row_start: Tensor | None = None, target: Target | None = None
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
        self, x: Tensor, carry: None, row_start: Tensor | None = None, target: Target | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to logits (b, s, v), or to the 0-d loss."""
        return project(self, x, carry, row_start, target)


def project(
    module: nn.Module,
    x: Tensor,
    carry: None,
    row_start: Tensor | None = None,
    target: Target | None = None,
) -> tuple[Tensor, None]:
    """Run the tied head with the token table of an Embedding or a TiedHead."""
    table = module.get_submodule("tokens")
    assert isinstance(table, Table)
    if target is not None:
        return token_loss(x, table.weight, target, backend=table.backend), None
    return linear(x, table.weight, backend=table.backend), None
