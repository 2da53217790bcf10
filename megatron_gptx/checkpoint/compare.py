"""Two checkpoints side by side, whatever ranks have written each of them."""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, still_there
from megatron_gptx.checkpoint.names import WEIGHTS, weights_name
from megatron_gptx.checkpoint.optimizer_state import MASTER
from megatron_gptx.checkpoint.safetensors_files import SavedLayer

WEIGHT = "weight"


class Difference(NamedTuple):
    """What two checkpoints hold of one tensor."""

    layer: int
    name: str
    kind: str
    largest: float
    """Largest absolute difference of two elements."""
    relative: float
    """Norm of the difference over the norm of the first."""
    missing: str = ""
    """Where the other one has no such tensor, or one of another shape: in words."""

    @property
    def equal(self) -> bool:
        """Whether every element is the same number."""
        return not self.missing and self.largest == 0


def differences(one: Checkpoint, other: Checkpoint) -> Iterator[Difference]:
    """Yield every weight, master weight and moment of two checkpoints, layer by layer.

    Raises:
        CheckpointError: one of them is damaged.
    """
    for checkpoint in (one, other):
        if problem := damage(checkpoint, all_names(checkpoint)):
            raise CheckpointError(f"{checkpoint.path} is damaged: {problem}")
    try:
        for layer in sorted(_layers(one) | _layers(other)):
            yield from _differences(layer, _open(one, layer), _open(other, layer))
    except (KeyError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        for checkpoint in (one, other):
            still_there(checkpoint.path)
        raise CheckpointError(f"{one.path} or {other.path} is damaged: {error}") from None


def _layers(checkpoint: Checkpoint) -> set[int]:
    found = set()
    for name in checkpoint.manifest["files"]:
        with suppress(ValueError):
            found.add(int(name.removeprefix(f"{WEIGHTS}/layer-").removesuffix(".safetensors")))
    return found


def _open(checkpoint: Checkpoint, layer: int) -> SavedLayer | None:
    listed = weights_name(layer) in checkpoint.manifest["files"]
    return SavedLayer(checkpoint.path, layer) if listed else None


def _differences(
    layer: int, one: SavedLayer | None, other: SavedLayer | None
) -> Iterator[Difference]:
    sides = [side for side in (one, other) if side is not None]
    kinds = {kind for side in sides for _, kind in side.ranges} - {MASTER}
    for name in sorted({name for side in sides for name in side.names()}):
        for kind in (WEIGHT, MASTER, *sorted(kinds)):
            pair = [_tensor(side, name, kind) for side in (one, other)]
            if pair[0] is not None and pair[1] is not None:
                yield _difference(layer, name, kind, pair[0], pair[1])
            elif pair[0] is not None or pair[1] is not None:
                only = "first" if pair[1] is None else "second"
                yield Difference(layer, name, kind, 0, 0, f"only in the {only}")


def _tensor(side: SavedLayer | None, name: str, kind: str) -> Tensor | None:
    if side is None or name not in side.names():
        return None
    if kind == WEIGHT:
        return side.weight(name, exact=False).view(side.shape(name)).float()
    if (name, kind) not in side.ranges:
        return None
    shape = side.shape(name)
    return side.moment(name, kind, 0, shape.numel()).view(shape)


def _difference(layer: int, name: str, kind: str, one: Tensor, other: Tensor) -> Difference:
    if one.shape != other.shape:
        shapes = f"shape {tuple(one.shape)} in the first, {tuple(other.shape)} in the second"
        return Difference(layer, name, kind, 0, 0, shapes)
    if one.equal(other):
        return Difference(layer, name, kind, 0, 0)
    between = (one.double() - other.double()).abs()
    relative = between.norm() / one.double().norm()
    return Difference(layer, name, kind, between.max().item(), relative.item())
