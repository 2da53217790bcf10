"""The normalisation before the head."""

from torch import Tensor

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.ops.layer_norm import LayerNorm


class FinalNorm(LayerNorm):
    """LayerNorm as a layer of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size)

    def forward(  # type: ignore[override]
        self, x: Tensor, carry: Tensor | None, row_start: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s, m) to normalised (b, s, m); the carry ends here."""
        return super().forward(x), None
