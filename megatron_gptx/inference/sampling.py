"""One token from one row of logits."""

import sys

import torch
from torch import Tensor

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig


def sample(logits: Tensor, options: GenerationConfig, generator: torch.Generator) -> int:
    """Return a token id drawn from (v,) logits; temperature 0 takes the likeliest.

    An id whose logit is -inf is never drawn.

    Raises:
        UserError: a logit is NaN, or none is finite.

    Sources: top-k sampling, Fan et al., arXiv:1805.04833; nucleus (top-p) sampling, Holtzman et
    al., arXiv:1904.09751.
    """
    highest = logits.max()
    if not highest.isfinite():  # the largest of some values is NaN if any of them is
        raise UserError(
            f"the model's largest logit is {highest.item()}: its weights are not finite, or too "
            "large; take an earlier checkpoint with --checkpoint"
        )
    if options.temperature == 0:
        return int(logits.argmax())
    ranked, ids = logits.float().sort(descending=True)
    # From 0 downwards, and wide: a low temperature would give inf - inf, or divide by 0.
    temperature = max(options.temperature, sys.float_info.min)
    ranked = ((ranked - ranked[0]).double() / temperature).float()
    if options.top_k is not None:
        ranked, ids = ranked[: options.top_k], ids[: options.top_k]
    probabilities = ranked.softmax(dim=-1)
    if options.top_p is not None:
        # The token that crosses the threshold still counts.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= options.top_p, 0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
