"""Loading: nothing is read that the manifest does not vouch for, and nothing is unpickled."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from megatron_gptx.checkpoint.layout import (
    ENGINE,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    damage,
    newest,
    weights_file,
)
from megatron_gptx.checkpoint.save import layout_of
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.schema import Config


def resume(engine: Any, *, config: Config, say: Callable[[str], None]) -> dict[str, int] | None:
    """Load the run's newest checkpoint into a DeepSpeed engine; every rank calls this.

    Args:
        engine: the DeepSpeed engine.
        config: the run's configuration now.
        say: takes one line for each option that was another one when the checkpoint was saved.

    Returns:
        The saved counters, or None where there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged, or was made by another model or layout.
    """
    found = newest(config.output.run_dir)
    if found is None:
        return None
    if config.checkpoint.start == "fresh":
        raise CheckpointError(
            f"checkpoint.start is 'fresh', but {found.path} exists; choose another "
            "output.run_dir, or checkpoint.start: auto to resume"
        )
    check_model(found, config.model)
    check_layout(found, config)
    _verify(found)
    for change in changed_options(found, config):
        say(f"changed since {found.path.name}: {change}")
    _load_safely(engine)
    if not config.parallel.sequential:
        # The plain engine's own files hold the weights, as ZeRO-3 has scattered them.
        for index, layer in engine.module.local_layers().items():
            read_layer(weights_file(found.path, index), layer)
    try:
        path, _ = engine.load_checkpoint(str(found.path), tag=ENGINE)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{found.path / ENGINE} holds something else than tensors and was not loaded: {error}"
        ) from None
    if path is None:
        raise CheckpointError(f"DeepSpeed found no state in {found.path / ENGINE}")
    return dict(found.manifest["state"])


def load_layers(checkpoint: Checkpoint, layers: Mapping[int, nn.Module]) -> None:
    """Copy saved weights into layers of any container.

    Raises:
        CheckpointError: a file is damaged or holds other tensors than its layer.
    """
    for index, layer in layers.items():
        path = weights_file(checkpoint.path, index)
        problem = damage(checkpoint, [str(path.relative_to(checkpoint.path))])
        if problem:
            raise CheckpointError(f"{checkpoint.path} is damaged: {problem}")
        read_layer(path, layer)


def read_layer(path: Path, layer: nn.Module) -> None:
    """Copy one weights file into its layer."""
    try:
        layer.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} does not fit its layer: {error}") from None


def check_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Raise CheckpointError, listing the differences, where a checkpoint is of another model."""
    saved = _flat(checkpoint.manifest["config"]["model"])
    wanted = _flat(model.model_dump())
    differing = [
        f"{key}: {saved.get(key)} in the checkpoint, {wanted.get(key)} in the configuration"
        for key in sorted(wanted.keys() | saved.keys())
        if saved.get(key) != wanted.get(key) and key not in _FREE
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} holds another model:\n  model." + "\n  model.".join(differing)
        )


# Options of the model that no saved tensor depends on.
_FREE = ("dropout", "attention.dropout", "init_std")


def changed_options(checkpoint: Checkpoint, config: Config) -> list[str]:
    """Return the options that a run is resumed with another value of, one line each."""
    saved, wanted = _flat(checkpoint.manifest["config"]), _flat(config.model_dump())
    return [
        f"{key} {saved.get(key)} -> {wanted.get(key)}"
        for key in sorted(wanted.keys() | saved.keys())
        if saved.get(key) != wanted.get(key) and not key.startswith("launch.")
    ]


def check_layout(checkpoint: Checkpoint, config: Config) -> None:
    """Raise CheckpointError where optimizer state was saved by another arrangement of ranks."""
    saved, wanted = checkpoint.manifest["layout"], layout_of(config)
    differing = [
        f"{key} {saved.get(key)} -> {wanted[key]}"
        for key in wanted
        if saved.get(key) != wanted[key]
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} was saved in another layout ({', '.join(differing)}); resume with "
            "the saved one"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by path; the paths are only shown, since a key may hold a dot."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat.update(inner or {prefix + key: value})
    return flat


def _verify(checkpoint: Checkpoint) -> None:
    """Check every file once, each by one of the ranks; all ranks raise together."""
    present = {
        str(path.relative_to(checkpoint.path))
        for part in (ENGINE, WEIGHTS)
        for path in (checkpoint.path / part).rglob("*")
        if not path.is_dir()
    }
    names = sorted(present | checkpoint.manifest["files"].keys())
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(
        problems, damage(checkpoint, names[dist.get_rank() :: dist.get_world_size()])
    )
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(f"{checkpoint.path} is damaged: {'; '.join(found)}")


def _load_safely(engine: Any) -> None:
    """Make DeepSpeed read its files without unpickling arbitrary objects."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]

    class WeightsOnly(TorchCheckpointEngine):
        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location=map_location, weights_only=True)

    engine.checkpoint_engine = WeightsOnly(engine._config)
