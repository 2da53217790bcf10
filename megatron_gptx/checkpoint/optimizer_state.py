"""What DeepSpeed keeps apart from the weights: AdamW's state, by layer and parameter.

What a rank holds of a parameter is a fragment: a range of its flattened elements, with the two
moments and, below fp32, the master weights of that range. Fragments name no stage, replica or ZeRO
stage, so that any arrangement of ranks can read what another one wrote. They hold what DeepSpeed's
universal checkpoints hold; those know nothing of ZeRO-0, and are unpickled.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "fp32"


# What a dynamic loss scale is about to do; fp16 has one.
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Fragment(NamedTuple):
    """A range of one flattened parameter whose optimizer state this rank holds."""

    layer: int
    name: str
    start: int
    numel: int
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
    _make_states(engine)
    for (layer, name), parameter in parameters.items():
        if hasattr(parameter, "ds_id"):
            place = _sharded(parameter)
        elif hasattr(parameter, "_hp_mapping"):
            place = _partitioned(engine.basic_optimizer, parameter)
        else:
            place = _whole(engine.basic_optimizer, parameter)
        if place is not None:
            yield Fragment(layer, name, *place)


def get_steps(engine: Any) -> int:
    """Return how many updates the optimizer has applied."""
    if isinstance(engine.basic_optimizer, torch.optim.AdamW):
        return max(int(state.get("step", 0)) for state, _ in _states(engine))
    return int(engine.basic_optimizer.param_groups[0].get("step", 0))


def set_steps(engine: Any, steps: int) -> None:
    """Replace the number of updates, which AdamW's bias correction depends on."""
    if isinstance(engine.basic_optimizer, torch.optim.AdamW):
        for state, flat in _states(engine):
            state["step"] = torch.tensor(float(steps), device=flat.device)
    else:
        for group in engine.basic_optimizer.param_groups:
            group["step"] = steps  # where Apex keeps it


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


_Place = tuple[int, int, Callable[[str], Tensor], Callable[[str, Tensor], None], bool]


def _whole(optimizer: Any, parameter: nn.Parameter) -> _Place:
    """Without ZeRO: state of the whole parameter, which is its own master."""

    def view(kind: str) -> Tensor:
        return optimizer.state[parameter][kind].view(-1)

    return 0, parameter.numel(), view, _copy_into(view), False


def _partitioned(optimizer: Any, parameter: Any) -> _Place | None:
    """ZeRO 1 and 2: a range of one flat tensor per parameter group."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None  # another replica's
    flat = optimizer.param_groups[mapping.param_group_index]["params"][0]
    inside = mapping.hp_fragment_address

    def view(kind: str) -> Tensor:
        whole = flat.detach() if kind == MASTER else optimizer.state[flat][kind]
        return whole.narrow(0, inside.start, inside.numel)

    start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    return start, numel, view, _copy_into(view), True


def _sharded(parameter: Any) -> _Place | None:
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

    return start, numel, get, put, True


def _copy_into(view: Callable[[str], Tensor]) -> Callable[[str, Tensor], None]:
    def copy(kind: str, value: Tensor) -> None:
        view(kind).copy_(value)

    return copy


def _states(engine: Any) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield the state and the tensor of everything that the optimizer updates at once."""
    sharded = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    updated = sharded or [p for g in engine.basic_optimizer.param_groups for p in g["params"]]
    for flat in updated:
        yield engine.basic_optimizer.state[flat], flat


def _make_states(engine: Any) -> None:
    """Give a state to what has not been updated yet."""
    for state, flat in _states(engine):
        if not state:
            state.update({moment: torch.zeros_like(flat.detach()) for moment in MOMENTS})
            if isinstance(engine.basic_optimizer, torch.optim.AdamW):
                state["step"] = torch.zeros((), device=flat.device)
