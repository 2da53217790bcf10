"""What DeepSpeed keeps apart from the weights: the optimizer's state, by layer and parameter.

What a rank holds of a parameter is a fragment: a range of its flattened elements, with the
optimizer's moments and, below fp32, the master weights of that range. Fragments name no stage,
replica or ZeRO stage, so that any arrangement of ranks can read what another one wrote. They hold
what DeepSpeed's universal checkpoints hold; those know nothing of ZeRO-0, and are unpickled.

A parameter group of an optimizer lists its `moments`, by the names in config/optimizers.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MASTER = "fp32"


# What a dynamic loss scale is about to do; fp16 has one.
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Fragment(NamedTuple):
    """A range of one flattened parameter whose optimizer state this rank holds."""

    layer: int
    name: str
    start: int
    numel: int
    moments: tuple[str, ...]
    """Names of the parameter's moments."""
    get: Callable[[str], Tensor]
    """Return the range of a moment or of the master weights, shape (numel,)."""
    set: Callable[[str, Tensor], None]
    """Replace it."""
    has_master: bool
    """Whether there are master weights, apart from the parameter itself."""

    @property
    def stop(self) -> int:
        """End of the range."""
        return self.start + self.numel


def fragments(
    engine: Any, parameters: Mapping[tuple[int, str], nn.Parameter]
) -> Iterator[Fragment]:
    """Yield what this rank holds; moments that do not exist yet are made, as zeros.

    Args:
        engine: the DeepSpeed engine.
        parameters: parameters by layer and name.
    """
    groups = engine.basic_optimizer.param_groups
    for group, flat in _updated(engine):
        begin_states(engine.basic_optimizer, group, [flat])
    of_group = {parameter: group for group in groups for parameter in group["params"]}
    for (layer, name), parameter in parameters.items():
        if hasattr(parameter, "ds_id"):
            place = _sharded(engine.optimizer, groups, parameter)
        elif hasattr(parameter, "_hp_mapping"):
            place = _partitioned(engine.basic_optimizer, parameter)
        else:
            place = _whole(engine.basic_optimizer, of_group[parameter], parameter)
        if place is not None:
            yield Fragment(layer, name, *place)


def get_steps(engine: Any) -> int:
    """Return how many updates the optimizer has applied."""
    optimizer = engine.basic_optimizer
    if _counts_by_group(optimizer):
        return int(optimizer.param_groups[0].get("step", 0))
    return max(int(optimizer.state[flat].get("step", 0)) for _, flat in _updated(engine))


def set_steps(engine: Any, steps: int) -> None:
    """Replace the number of updates, which AdamW's bias correction depends on."""
    optimizer = engine.basic_optimizer
    if _counts_by_group(optimizer):
        for group in optimizer.param_groups:
            group["step"] = steps
    else:
        for _, flat in _updated(engine):
            optimizer.state[flat]["step"] = torch.tensor(float(steps), device=flat.device)


def begin_states(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameters: Sequence[Tensor]
) -> list[dict[str, Tensor]]:
    """Return the states of some parameters of a group, made as zeros where there are none yet."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state.update({name: torch.zeros_like(parameter) for name in group["moments"]})
            if not _counts_by_group(optimizer):
                state["step"] = torch.zeros((), device=parameter.device)
    return [optimizer.state[parameter] for parameter in parameters]


def _counts_by_group(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether updates are counted for a whole group, as Apex does."""
    return type(optimizer).__module__.startswith("apex.")


def get_loss_scale(engine: Any) -> dict[str, float] | None:
    """Return the state of fp16's dynamic loss scale, or None where there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not scaler.dynamic:
        return None
    return {key: getattr(scaler, key) for key in _SCALER}


def set_loss_scale(engine: Any, values: Mapping[str, float] | None) -> None:
    """Restore what `get_loss_scale` returned, where there is such a scale now as well."""
    if values is not None and get_loss_scale(engine) is not None:
        for key in _SCALER:
            setattr(engine.optimizer.loss_scaler, key, values[key])


def named_parameters(layers: Mapping[int, nn.Module]) -> dict[tuple[int, str], nn.Parameter]:
    """Return the parameters of some layers by (layer, name)."""
    return {
        (index, name): parameter
        for index, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }


_Place = tuple[
    int, int, tuple[str, ...], Callable[[str], Tensor], Callable[[str, Tensor], None], bool
]


def _whole(optimizer: Any, group: Mapping[str, Any], parameter: nn.Parameter) -> _Place:
    """Without ZeRO: state of the whole parameter, which is its own master."""

    def view(kind: str) -> Tensor:
        return optimizer.state[parameter][kind].view(-1)

    return 0, parameter.numel(), group["moments"], view, _copy_into(view), False


def _partitioned(optimizer: Any, parameter: Any) -> _Place | None:
    """ZeRO 1 and 2: a range of one flat tensor per parameter group."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None  # another replica's
    group = optimizer.param_groups[mapping.param_group_index]
    flat = group["params"][0]
    inside = mapping.hp_fragment_address

    def view(kind: str) -> Tensor:
        whole = flat.detach() if kind == MASTER else optimizer.state[flat][kind]
        return whole.narrow(0, inside.start, inside.numel)

    start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    return start, numel, group["moments"], view, _copy_into(view), True


def _sharded(zero: Any, groups: Sequence[Mapping[str, Any]], parameter: Any) -> _Place | None:
    """ZeRO-3: equal shares of every parameter, the last one padded."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_get_local_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    share = parameter.ds_tensor.numel()
    start = share * parameter.ds_process_group.rank()
    numel = min(share, parameter.ds_numel - start)
    if numel <= 0:
        return None

    def get(kind: str) -> Tensor:
        if kind == MASTER:
            return safe_get_local_fp32_param(parameter).detach()[:numel]
        return safe_get_local_optimizer_state(parameter, kind)[:numel]

    def put(kind: str, value: Tensor) -> None:
        padded = nn.functional.pad(value, (0, share - numel))
        if kind == MASTER:
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, kind)

    sub_group = zero.grad_position[zero.get_param_id(parameter)][0]
    moments = groups[zero.sub_group_to_group_id[sub_group]]["moments"]
    return start, numel, moments, get, put, True


def _copy_into(view: Callable[[str], Tensor]) -> Callable[[str, Tensor], None]:
    def copy(kind: str, value: Tensor) -> None:
        view(kind).copy_(value)

    return copy


def _updated(engine: Any) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield everything that the optimizer updates at once, with its group."""
    groups = engine.basic_optimizer.param_groups
    sharded = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    if sharded:
        group_of = engine.optimizer.sub_group_to_group_id
        yield from ((groups[group_of[index]], flat) for index, flat in enumerate(sharded))
    else:
        yield from ((group, parameter) for group in groups for parameter in group["params"])
