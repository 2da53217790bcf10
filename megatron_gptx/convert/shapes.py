"""The widths of a decoder's matrices, by the rules of the tool that builds it."""

from typing import NamedTuple


class Shape(NamedTuple):
    """A decoder of equal layers with attention and one feed-forward each."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    outer: int  # outputs of the feed-forward's first projection, the gate included
    inner: int  # inputs of its second
    positions: int  # rows of the table of positions
    norm: int  # parameters of one norm
    tied: bool
    attention_biases: bool
    feedforward_biases: bool

    def parameters(self, rows: int) -> int:
        """Return the size of the model with `rows` rows in each table of tokens."""
        width = self.hidden_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = width * (2 * queries + 2 * keys)
        if self.attention_biases:
            attention += queries + 2 * keys + width
        feedforward = width * (self.outer + self.inner)
        if self.feedforward_biases:
            feedforward += self.outer + width
        tables = (rows * (1 if self.tied else 2) + self.positions) * width
        return tables + self.num_layers * (attention + feedforward + 2 * self.norm) + self.norm
