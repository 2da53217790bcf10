"""How many parameters every entry of the layer list has, counted from the configuration alone."""

from typing import NamedTuple

from megatron_gptx.config.model import ModelConfig


class Matrix(NamedTuple):
    """Shape of a block's weight matrix, and how many lie one below another in one parameter."""

    rows: int
    columns: int
    number: int = 1

    @property
    def size(self) -> int:
        """Elements of the parameter."""
        return self.number * self.rows * self.columns


def layer_parameters(config: ModelConfig) -> list[int]:
    """Return the parameters of every layer: embedding, blocks, final norm where there is one, head.

    A tied head has none of its own, so that the sum is the size of the model.
    """
    norm = [2 * config.hidden_size] if config.final_norm else []
    blocks = [_block(config)] * config.num_layers
    return [_embedding(config), *blocks, *norm, _head(config)]


def model_parameters(config: ModelConfig) -> int:
    """Return the size of the model; a tied matrix counts once."""
    return sum(layer_parameters(config))


def held_parameters(config: ModelConfig, first: int, stop: int) -> int:
    """Return the parameters that a process with the layers [first, stop) keeps.

    With a tied head the last stage of a pipeline keeps a copy of the token table, its gradient and
    its optimizer state.
    """
    own = sum(layer_parameters(config)[first:stop])
    copies = config.tied_head and first > 0 and stop == config.num_pipeline_layers
    return own + (config.vocab_size * config.hidden_size if copies else 0)


def block_matrices(config: ModelConfig) -> list[Matrix]:
    """Return the weight matrices of one block."""
    width, inner = config.hidden_size, config.ffn_width
    num_inner = 2 if config.activation == "swiglu" else 1  # a gate beside the values
    feedforward = [*[Matrix(inner, width)] * num_inner, Matrix(width, inner)]
    attention = [Matrix(width, width, number=3), Matrix(width, width)]
    return attention + feedforward * (2 if config.macaron else 1)


def matrix_parameters(config: ModelConfig, first: int, stop: int) -> int:
    """Return the parameters in matrices of the blocks among the layers [first, stop)."""
    num_blocks = max(0, min(stop, config.num_layers + 1) - max(first, 1))
    return num_blocks * sum(matrix.size for matrix in block_matrices(config))


def _embedding(config: ModelConfig) -> int:
    positions = config.seq_length if config.position == "learned" else 0
    return (config.vocab_size + positions) * config.hidden_size


def _head(config: ModelConfig) -> int:
    return 0 if config.tied_head else config.vocab_size * config.hidden_size


def _block(config: ModelConfig) -> int:
    width = config.hidden_size
    num_feedforwards = 2 if config.macaron else 1
    num_branches = num_feedforwards + 1
    join = 1 if config.residual == "rezero" else 2 * width  # a gate, or a LayerNorm
    biases = 0
    if config.biases:
        biases = sum(matrix.number * matrix.rows for matrix in block_matrices(config))
    return sum(matrix.size for matrix in block_matrices(config)) + biases + num_branches * join
