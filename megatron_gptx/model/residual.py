"""How a branch joins the residual stream.

A block computes `x = add(x, branch(add.branch_input(x)), scale)` for each of its branches; a
strategy decides what the branch reads and how its output is added. Each drops elements of the
branch.
"""

import torch
from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.ops.layer_norm import LayerNorm


class ReZero(nn.Module):
    """x + gate * f(x), with one learned gate that starts at 0.

    Source: Bachlechner et al. 2020, "ReZero is All You Need", arXiv:2003.04887, section 3.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(config.dropout)

    def branch_input(self, x: Tensor) -> Tensor:
        """Return what the branch reads: x itself."""
        return x

    def forward(self, x: Tensor, branch: Tensor, scale: float = 1) -> Tensor:
        """Return the sum, (b, s, m), of a stream and the multiple of a branch of that shape."""
        return torch.addcmul(x, self.gate, self.dropout(branch), value=scale)


class PreNorm(nn.Module):
    """x + f(LayerNorm(x)).

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer", arXiv:2002.04745.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def branch_input(self, x: Tensor) -> Tensor:
        """Return what the branch reads: x normalised."""
        return self.norm(x)

    def forward(self, x: Tensor, branch: Tensor, scale: float = 1) -> Tensor:
        """Return the sum, (b, s, m), of a stream and the multiple of a branch of that shape."""
        return x.add(self.dropout(branch), alpha=scale)


class PostNorm(nn.Module):
    """LayerNorm(x + f(x)).

    Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def branch_input(self, x: Tensor) -> Tensor:
        """Return what the branch reads: x itself."""
        return x

    def forward(self, x: Tensor, branch: Tensor, scale: float = 1) -> Tensor:
        """Return the normalised sum, (b, s, m), of a stream and the multiple of such a branch."""
        return self.norm(x.add(self.dropout(branch), alpha=scale))


def make_residual(config: ModelConfig) -> ReZero | PreNorm | PostNorm:
    """Return a new instance of the configured strategy; each branch has its own."""
    strategies: dict[str, type[ReZero | PreNorm | PostNorm]] = {
        "rezero": ReZero,
        "pre_norm": PreNorm,
        "post_norm": PostNorm,
    }
    return strategies[config.residual](config)
