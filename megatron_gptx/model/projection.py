"""The projections of a block."""

from torch import Tensor, nn

from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.linear import Activation, linear


class Projection(nn.Linear):
    """activation(x @ weight.T + bias)."""

    def __init__(
        self, in_width: int, out_width: int, *, bias: bool, activation: Activation = None
    ) -> None:
        super().__init__(in_width, out_width, bias=bias)
        self.activation: Activation = activation
        self.backend: Backend = "reference"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_width) to (..., out_width)."""
        return linear(x, self.weight, self.bias, activation=self.activation, backend=self.backend)


class StreamProjection(Projection):
    """A branch's last projection, whose output joins the stream and is initialised for that."""


class QKVProjection(Projection):
    """Queries, keys and values at once: three matrices, one below another in one parameter."""


class HeadProjection(Projection):
    """The output projection to logits, one row for each token of the vocabulary."""
