"""One token from one row of logits."""

import torch
from torch import Tensor

from megatron_gptx.config.output import GenerationConfig


def sample(logits: Tensor, options: GenerationConfig, generator: torch.Generator) -> int:
    """Return a token id drawn from (v,) logits; temperature 0 takes the likeliest.

    Sources: top-k sampling, Fan et al., arXiv:1805.04833; nucleus (top-p) sampling, Holtzman et
    al., arXiv:1904.09751.
    """
    if options.temperature == 0:
        return int(logits.argmax())
    ranked, ids = (logits.float() / options.temperature).sort(descending=True)
    if options.top_k is not None:
        ranked, ids = ranked[: options.top_k], ids[: options.top_k]
    probabilities = ranked.softmax(dim=-1)
    if options.top_p is not None:
        # The token that crosses the threshold still counts.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= options.top_p, 0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
