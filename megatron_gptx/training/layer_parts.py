"""What this rank holds of each layer's weights and gradients, whatever DeepSpeed makes of them."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from deepspeed.utils import safe_get_local_grad
from torch import Tensor

from megatron_gptx.checkpoint.optimizer_state import (
    MASTER,
    Fragment,
    fragments,
    named_parameters,
)
from megatron_gptx.training.engine import Engine


class Part(NamedTuple):
    """A range of one flattened parameter. Over all ranks, each element is in one part."""

    name: str
    weights: Tensor
    gradient: Tensor
    """Of the whole batch, neither scaled nor clipped."""


def before_update(engine: Any, do: Callable[[], None]) -> None:
    """Do something before each update of the weights, when all gradients are there.

    DeepSpeed's pipeline engine takes a whole step in one call, and its optimizers clear gradients.
    """
    update = engine.optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        do()
        return update(*args, **kwargs)

    engine.optimizer.step = step


def own_parts(engine: Engine) -> Iterator[tuple[int, list[Part]]]:
    """Yield the number and this rank's parts of each layer that it holds something of.

    One layer at a time, since gradients of 16 bits or with a loss scale are copied.
    """
    of_deepspeed = engine.deepspeed
    if of_deepspeed.device.type == "cuda":
        torch.cuda.synchronize()  # an offloaded gradient may be on its way to the host
    scale = getattr(of_deepspeed.optimizer, "loss_scale", 1.0)
    parameters = named_parameters(of_deepspeed.module.local_layers())
    held = fragments(of_deepspeed, parameters)
    for layer, of_layer in groupby(held, key=lambda fragment: fragment.layer):
        parts = [
            _part(fragment, parameters[layer, fragment.name], scale)
            for fragment in of_layer
            # Without ZeRO, all replicas hold the same.
            if fragment.has_master or engine.replica == 0
        ]
        if parts:
            yield layer, parts


def _part(fragment: Fragment, parameter: Any, scale: float) -> Part:
    weights = fragment.get(MASTER) if fragment.has_master else parameter.view(-1)
    gradient = _gradient(parameter, fragment).float()
    return Part(fragment.name, weights.detach(), gradient if scale == 1 else gradient / scale)


def _gradient(parameter: Any, fragment: Fragment) -> Tensor:
    if hasattr(parameter, "ds_id"):
        return safe_get_local_grad(parameter)[: fragment.numel]
    if hasattr(parameter, "_hp_mapping"):
        place = parameter._index_in_param_group
        gradient = parameter._hp_mapping.get_lp_grad_fragment(place).view(-1)
        if gradient.numel() == parameter.numel():  # bf16 keeps all of it on every replica
            gradient = gradient.narrow(0, fragment.start, fragment.numel)
        return gradient
    gradient = parameter.grad
    return torch.zeros_like(parameter) if gradient is None else gradient.view(-1)
