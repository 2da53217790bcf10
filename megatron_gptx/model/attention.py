"""Multi-head self-attention: the projections around the attention op."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig, ModelConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.alibi import alibi_slopes
from megatron_gptx.model.residual import StreamProjection
from megatron_gptx.ops import library
from megatron_gptx.ops.attention import attention, unsupported


class Attention(nn.Module):
    """Causal self-attention, optionally with ALiBi, top-k selection and carried scores."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.hidden_size
        self.qkv = nn.Linear(m, 3 * m, bias=config.biases)
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
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (b, s, 3, h, d)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()  # (b, h, s, d) each
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


def choose_backend(
    model: nn.Module,
    config: AttentionConfig,
    backend: Backend,
    *,
    device_type: str,
    say: Callable[[str], object],
) -> None:
    """Give every attention in a model its backend, and load the kernels if it may use them.

    Args:
        model: holds the attention layers.
        config: what they compute.
        backend: what the user asked for.
        device_type: where they will run, as torch names it.
        say: takes one line with the choice and its reason, and one before a build.

    Raises:
        UserError: the kernels were asked for and cannot run.
    """
    if backend == "reference":
        problem: str | None = "ops.backend asks for it"
    else:
        # Every precision of a configuration is one that the kernels take.
        problem = unsupported(device_type, torch.float32, top_k=config.top_k)
        # Last, for it may have to build them.
        problem = problem or library.load(say)
    if problem and backend == "fused":
        raise UserError(
            f"ops.backend is fused, but the fused attention cannot run: {problem}; mend that, or "
            "set ops.backend to auto"
        )
    say(f"attention: plain PyTorch, since {problem}" if problem else "attention: fused kernels")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = "reference" if problem else "fused"
