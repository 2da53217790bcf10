"""How many parameters every entry of the layer list has, counted from the configuration alone."""

from megatron_gptx.config.model import ModelConfig


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
    bias = width if config.biases else 0
    attention = 4 * (width * width + bias)
    return attention + num_feedforwards * _feedforward(config) + num_branches * join


def _feedforward(config: ModelConfig) -> int:
    width, inner = config.hidden_size, config.ffn_width
    num_inner = 2 if config.activation == "swiglu" else 1  # a gate beside the values
    biases = num_inner * inner + width if config.biases else 0
    return (num_inner + 1) * width * inner + biases
