"""Which layers make up which pipeline stage."""

from collections.abc import Callable
from itertools import accumulate, pairwise

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.flops import layer_flops
from megatron_gptx.costs.parameters import held_parameters


def boundaries(config: Config) -> list[int]:
    """Return the edges [0, ..., number of layers] of the stages, configured or balanced.

    Raises:
        UserError: a stage would be empty.
    """
    if config.parallel.boundaries is None:
        return balance(config.model, config.parallel.pipeline_stages)
    edges = [0, *config.parallel.boundaries, config.model.num_pipeline_layers]
    if any(first >= stop for first, stop in pairwise(edges)):
        raise UserError(
            f"parallel.boundaries {config.parallel.boundaries} leave a stage empty; they must rise "
            f"strictly between 0 and {edges[-1]}"
        )
    return edges


def balance(config: ModelConfig, num_stages: int) -> list[int]:
    """Return the edges of `num_stages` stages whose slowest one is as fast as possible.

    The stage with the most FLOPs sets the pace of a pipeline. Among the layouts with the smallest
    such maximum, the one whose largest stage has the fewest parameters is taken, then the most even
    one, then the one whose first boundaries come earliest.

    Raises:
        UserError: there are fewer layers than stages.
    """
    num_layers = config.num_pipeline_layers
    if not 1 <= num_stages <= num_layers:
        raise UserError(
            f"the {num_layers} layers of the model ({config.num_layers} blocks, the embedding and "
            f"the head among them) cannot form {num_stages} stages; set parallel.pipeline_stages "
            f"between 1 and {num_layers}"
        )
    before = [0, *accumulate(layer_flops(config))]

    def flops(first: int, stop: int) -> int:
        return before[stop] - before[first]

    def parameters(first: int, stop: int) -> int:
        return held[first, stop]

    held = {
        (first, stop): held_parameters(config, first, stop)
        for first in range(num_layers)
        for stop in range(first + 1, num_layers + 1)
    }
    # The aims have an order: a later aim only breaks ties of the earlier ones. Dynamic programming
    # minimises one "largest stage" at a time. So there is one pass per aim, and the best value of a
    # pass is a ceiling for the next passes.
    most_flops, _ = _divide(num_layers, num_stages, flops, join=max)
    fast = {edge for edge in held if flops(*edge) <= most_flops}
    most_parameters, _ = _divide(num_layers, num_stages, parameters, join=max, allowed=fast)
    small = {edge for edge in fast if parameters(*edge) <= most_parameters}
    _, edges = _divide(
        num_layers, num_stages, lambda *edge: flops(*edge) ** 2, join=int.__add__, allowed=small
    )
    return edges


def _divide(
    num_layers: int,
    num_stages: int,
    cost: Callable[[int, int], int],
    *,
    join: Callable[[int, int], int],
    allowed: set[tuple[int, int]] | None = None,
) -> tuple[int, list[int]]:
    """Return the least joined cost of consecutive stages and its edges, by dynamic programming.

    Works from the last layer to the first, so that of equal layouts the earliest edges win.
    """
    # best[first]: the cheapest way to make the stages still missing out of the layers from `first`.
    best: dict[int, tuple[int, list[int]]] = {num_layers: (0, [num_layers])}
    for _ in range(num_stages):
        longer: dict[int, tuple[int, list[int]]] = {}
        for first in range(num_layers):
            options = (
                (join(cost(first, stop), best[stop][0]), [first, *best[stop][1]])
                for stop in range(first + 1, num_layers + 1)
                if stop in best and (allowed is None or (first, stop) in allowed)
            )
            option = min(options, default=None)
            if option is not None:
                longer[first] = option
        best = longer
    return best[0]
