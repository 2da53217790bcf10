"""Multi-head self-attention: the projections around the attention op."""

from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.alibi import alibi_slopes
from megatron_gptx.model.projection import QKVProjection, StreamProjection
from megatron_gptx.ops.attention import attention


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
