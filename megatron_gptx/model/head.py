"""Activations to logits."""

from torch import Tensor, nn
from torch.nn import functional

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.embedding import Table
from megatron_gptx.model.projection import Projection


class Head(Projection):
    """The output projection, which never has a bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def forward(  # type: ignore[override]
        self, x: Tensor, carry: None, row_start: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to logits (b, s, v)."""
        return super().forward(x), None


class TiedHead(nn.Module):
    """The output projection by the embedding's token table.

    The table has the embedding's name, `tokens.weight`, so `project` works on either module: a
    pipeline stage that holds both uses the embedding alone, and a stage that holds only the head
    does not carry a table of positions as well.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = Table(config.vocab_size, config.hidden_size)

    def forward(
        self, x: Tensor, carry: None, row_start: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to logits (b, s, v)."""
        return project(self, x, carry)


def project(
    module: nn.Module, x: Tensor, carry: None, row_start: Tensor | None = None
) -> tuple[Tensor, None]:
    """Run the tied head with the token table of an Embedding or a TiedHead."""
    return functional.linear(x, module.get_parameter("tokens.weight")), None
