"""A decoder block: attention and feed-forward, joined to the stream by the residual strategy."""

from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.feedforward import make_feedforward
from megatron_gptx.model.residual import make_residual


class Block(nn.Module):
    """Attention, then a feed-forward.

    Source of the carried scores: He et al. 2020, "RealFormer", arXiv:2012.11747, section 3.
    """

    def __init__(self, config: ModelConfig, *, is_last: bool) -> None:
        super().__init__()
        self.attention, self.add_attention = Attention(config), make_residual(config)
        self.feedforward, self.add_feedforward = make_feedforward(config), make_residual(config)
        # DeepSpeed asserts a gradient for every float tensor that a stage receives (pipe/engine.py,
        # _exec_send_grads), so the last block must not pass its scores on.
        self.returns_scores = config.attention.residual_scores and not is_last

    def forward(
        self, x: Tensor, prev_scores: Tensor | None, row_start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map (b, s, m) activations and (b, h, s, t) scores to the same pair.

        A query sees no key before its (b, s) row_start.
        """
        mixed, scores = self.attention(
            self.add_attention.branch_input(x),
            prev_scores,
            row_start,
            return_scores=self.returns_scores,
        )
        x = self.add_attention(x, mixed)
        x = self.add_feedforward(x, self.feedforward(self.add_feedforward.branch_input(x)))
        return x, scores


class MacaronBlock(nn.Module):
    """Attention between two half-step feed-forwards.

    Sources: Lu et al. 2019, "Macaron Net", arXiv:1906.02762, section 3.2 (the half steps);
    He et al. 2020, "RealFormer", arXiv:2012.11747, section 3 (the carried scores).
    """

    def __init__(self, config: ModelConfig, *, is_last: bool) -> None:
        super().__init__()
        self.feedforward_before, self.add_before = make_feedforward(config), make_residual(config)
        self.attention, self.add_attention = Attention(config), make_residual(config)
        self.feedforward_after, self.add_after = make_feedforward(config), make_residual(config)
        self.returns_scores = config.attention.residual_scores and not is_last

    def forward(
        self, x: Tensor, prev_scores: Tensor | None, row_start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map (b, s, m) activations and (b, h, s, t) scores to the same pair.

        A query sees no key before its (b, s) row_start.
        """
        x = self.add_before(x, self.feedforward_before(self.add_before.branch_input(x)), 0.5)
        mixed, scores = self.attention(
            self.add_attention.branch_input(x),
            prev_scores,
            row_start,
            return_scores=self.returns_scores,
        )
        x = self.add_attention(x, mixed)
        x = self.add_after(x, self.feedforward_after(self.add_after.branch_input(x)), 0.5)
        return x, scores
