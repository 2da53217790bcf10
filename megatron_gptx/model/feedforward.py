"""The position-wise feed-forward network."""

from torch import Tensor, nn
from torch.nn import functional

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.projection import Projection, StreamProjection
from megatron_gptx.ops.linear import Activation


class FeedForward(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m, f = config.hidden_size, config.ffn_width
        # GELU comes with the projection, where kernels compute it on the way.
        activation: Activation = "gelu" if config.activation == "gelu" else None
        self.up = Projection(m, f, bias=config.biases, activation=activation)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()
        self.down = StreamProjection(f, m, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, s, m) to (b, s, m)."""
        return self.down(self.activation(self.up(x)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): three matrices of inner width f where the plain one has two.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202, section 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m, f = config.hidden_size, config.ffn_width
        self.gate = Projection(m, f, bias=config.biases)
        self.up = Projection(m, f, bias=config.biases)
        self.down = StreamProjection(f, m, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, s, m) to (b, s, m)."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def make_feedforward(config: ModelConfig) -> FeedForward | SwiGLU:
    """Return a new feed-forward network with the configured activation."""
    return SwiGLU(config) if config.activation == "swiglu" else FeedForward(config)
