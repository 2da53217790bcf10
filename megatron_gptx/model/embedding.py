"""Token ids to activations."""

from torch import Tensor, arange, nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import Backend


class Table(nn.Embedding):
    """A row per id, without values of its own: model/initialize.py draws them."""

    # How a head that shares the table multiplies with it.
    backend: Backend = "reference"

    def reset_parameters(self) -> None:
        """Draw nothing: on the meta device, PyTorch's default would import its compiler (2 s)."""


class Embedding(nn.Module):
    """A row per token, plus a row per position where positions are learned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # First, because a tied head draws the same table from the same seed.
        self.tokens = Table(config.vocab_size, config.hidden_size)
        self.positions = (
            Table(config.seq_length, config.hidden_size) if config.position == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, prev_scores: None, row_start: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Map (b, s) int64 token ids to (b, s, m).

        A position counts from the first token that is seen, `row_start`: so a document has the
        same positions wherever it lies, and a prompt the same with and without padding before it.

        Raises:
            UserError: there are more tokens than learned positions.
        """
        x = self.tokens(tokens)
        if self.positions is not None:
            s, rows = tokens.shape[-1], self.positions.num_embeddings
            if s > rows:
                raise UserError(
                    f"{s} tokens do not fit into the {rows} learned positions of this model "
                    f"(model.seq_length {rows}); give it at most {rows} tokens, or train with "
                    "position: alibi, which has no table"
                )
            columns = arange(s, device=tokens.device)
            if row_start is not None:
                # Padding comes before the first token, and nothing sees it.
                columns = (columns - row_start).clamp(min=0)
            x = x + self.positions(columns)
        return self.dropout(x), None
