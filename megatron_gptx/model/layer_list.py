"""The model as one list of layers, for whatever container runs them.

Every layer is `forward(x, prev_scores, row_start) -> (x, scores | None)`. x starts as (b, s) token
ids, is (b, s, m) between layers and ends as (b, s, v) logits; the scores are (b, h, s, t) or None;
row_start is (b, s) int32, the first token that each one sees, or None for the first of all.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.distributed.seeds import derive_seed
from megatron_gptx.model.block import Block, MacaronBlock
from megatron_gptx.model.embedding import Embedding
from megatron_gptx.model.head import FinalNorm, Head, TiedHead
from megatron_gptx.model.initialize import initialize

# The parameter that layers of one tied_key share, under this name in each of them.
TIED_PARAMETER = "tokens.weight"


class LayerEntry(NamedTuple):
    """One layer: its name, how to build it, and which other layers share its token table."""

    name: str
    build: Callable[[], nn.Module]
    tied_key: str | None = None


def layer_list(config: ModelConfig) -> list[LayerEntry]:
    """Return the embedding, the blocks, the final norm where there is one, and the head."""
    block = MacaronBlock if config.macaron else Block
    tied_key = "embedding" if config.tied_head else None
    head = TiedHead if config.tied_head else Head
    blocks = [
        LayerEntry(f"block {i}", partial(block, config, is_last=i == config.num_layers))
        for i in range(1, config.num_layers + 1)
    ]
    norm = [LayerEntry("final norm", partial(FinalNorm, config))] if config.final_norm else []
    return [
        LayerEntry("embedding", partial(Embedding, config), tied_key),
        *blocks,
        *norm,
        LayerEntry("head", partial(head, config), tied_key),
    ]


def build_layer(config: ModelConfig, index: int, seed: int) -> nn.Module:
    """Return layer `index` with weights that depend on nothing but the seed and the index.

    A tied head draws the embedding's table. The layer stands on the CPU, or on the meta device
    where that is the default; no random number comes from torch's global generator.
    """
    entries = layer_list(config)
    entry = entries[index]
    # In PyTorch 2.6, torch.get_default_device() does not see `with torch.device(...)`.
    default = torch.empty(0).device
    # Built without memory first: PyTorch's own initial values would cost time and random numbers.
    with torch.device("meta"):
        layer = entry.build()
    if default.type == "meta":
        return layer
    layer.to_empty(device="cpu")
    if entry.tied_key is not None:
        index = [other.tied_key for other in entries].index(entry.tied_key)
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "weights", index))
    initialize(layer, config, generator)
    return layer


def build_layers(
    config: ModelConfig, seed: int, *, prepare: Callable[[nn.Module], object] | None = None
) -> list[nn.Module]:
    """Return all layers, a tied head sharing the embedding's table.

    `prepare` is called with each layer as soon as it is built: what it frees, such as the shares of
    other replicas, is never there for all layers at once.
    """
    layers: list[nn.Module] = []
    for index in range(config.num_pipeline_layers):
        layer = build_layer(config, index, seed)
        if isinstance(layer, Embedding):
            embedding = layer
        if isinstance(layer, TiedHead):
            layer.tokens = embedding.tokens
        elif prepare is not None:
            prepare(layer)
        layers.append(layer)
    return layers
