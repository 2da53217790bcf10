"""The arithmetic of training, in model FLOPs: what the mathematics needs, however it is computed.

The convention is that of the PaLM paper (Chowdhery et al. 2022, arXiv:2204.02311, appendix B),
which defines model FLOPs utilisation (MFU): matrix products only, two FLOPs per multiply-add, a
backward pass of twice the forward pass, and no recomputation. PaLM writes 6N + 12LHQT per token. We
differ in three places, each of which counts less, so that our MFU is never the flattering one:

- N is only the weights that multiply: no embedding table, norm, gate or bias.
- Attention is causal: a query meets (s + 1) / 2 keys on average, not all s.
- With `top_k` only the kept keys count in the product of probabilities and values. The scores that
  choose them still count for every earlier key.
"""

from megatron_gptx.config.model import ModelConfig


def layer_flops(config: ModelConfig) -> list[int]:
    """Return every layer's forward FLOPs for one sequence of `seq_length` tokens, exactly."""
    norm = [0] if config.final_norm else []
    head = 2 * config.seq_length * config.vocab_size * config.hidden_size
    return [0, *[_block(config)] * config.num_layers, *norm, head]


def forward_flops_per_token(config: ModelConfig) -> float:
    """Return the model FLOPs of one token's forward pass, averaged over its place in a sequence."""
    return sum(layer_flops(config)) / config.seq_length


def training_flops_per_token(config: ModelConfig) -> float:
    """Return the model FLOPs of one token's forward and backward pass: the numerator of MFU."""
    return 3 * forward_flops_per_token(config)


def executed_flops_per_token(config: ModelConfig, checkpoint_activations: int) -> float:
    """Return the FLOPs per token with a second forward pass of what is recomputed: the blocks."""
    recomputed = config.num_layers * _block(config) if checkpoint_activations else 0
    return training_flops_per_token(config) + recomputed / config.seq_length


def _block(config: ModelConfig) -> int:
    width = config.hidden_size
    num_matrices = 3 if config.activation == "swiglu" else 2
    feedforwards = (2 if config.macaron else 1) * num_matrices * width * config.ffn_width
    weights = 4 * width * width + feedforwards
    return 2 * config.seq_length * weights + 2 * width * _query_key_pairs(config)


def _query_key_pairs(config: ModelConfig) -> int:
    """Return how many query-key pairs of a sequence are scored, plus how many of those are kept."""
    length = config.seq_length
    kept = min(config.attention.top_k or length, length)
    scored = length * (length + 1) // 2
    return scored + kept * (kept + 1) // 2 + (length - kept) * kept
