"""Loading: nothing is read that the manifest does not vouch for, and nothing is unpickled."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from megatron_gptx.checkpoint.changes import changed_options, check_model
from megatron_gptx.checkpoint.engine_state import (
    MASTER,
    MOMENTS,
    fragments,
    named_parameters,
    set_loss_scale,
    set_steps,
)
from megatron_gptx.checkpoint.layout import (
    Checkpoint,
    CheckpointError,
    all_names,
    checkpoint_folder,
    checkpoints,
    damage,
    named_newest,
    newest,
    newest_sound,
    point_to,
    printable,
    read,
    step_of,
    weights_name,
)
from megatron_gptx.checkpoint.tensors import SavedLayer
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.faults import fault_point
from megatron_gptx.distributed.process import lost_a_peer


def resume(engine: Any, *, config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """Load the run's newest checkpoint into a DeepSpeed engine; every rank calls this.

    The checkpoint may have been saved by any number of stages and replicas, at any ZeRO stage and
    in any precision.

    Args:
        engine: the DeepSpeed engine.
        config: the run's configuration now.
        say: takes one line for each option that was another one when the checkpoint was saved.

    Returns:
        What has been loaded, or None where there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model, or there must be none.
    """
    found = _choose(config, say)
    if found is not None:
        _use(found, engine, config, say)
    return found


def go_back(engine: Any, *, config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """Load the run's newest checkpoint that was not saved amid bad steps; every rank calls this.

    Args, returns and raises as `resume`, but for `checkpoint.start`, which is about a start.
    """
    found = _by_leader(lambda: newest_sound(config.output.run_dir))
    if found is not None:
        _use(_intact(found), engine, config, say)
    return found


def _use(found: Checkpoint, engine: Any, config: Config, say: Callable[[str], None]) -> None:
    """Load a checkpoint whose files are intact, if it is of this model."""
    check_model(found, config.model)
    for change in changed_options(found, config):
        say(printable(f"changed since {found.path.name}: {change}"))
    fault_point("load", step=found.step)
    _load(engine, found, config)


def _choose(config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint, all of whose files are intact; every rank finds the same."""
    found = _by_leader(lambda: newest(config.output.run_dir))
    start = config.checkpoint.start
    if start == "intact" and found is not None:
        chosen = _newest_intact(config, say)
        # What was passed over is given up: nothing goes back to it, or keeps it instead of another.
        if problem := _by_leader(partial(point_to, chosen.path)):
            raise problem
        return chosen
    if isinstance(found, Checkpoint) and start == "fresh":
        raise CheckpointError(
            f"checkpoint.start is 'fresh', but {found.path} exists; choose another "
            "output.run_dir, or checkpoint.start: auto to resume"
        )
    return None if found is None else _intact(found)


def _intact(found: Checkpoint | CheckpointError) -> Checkpoint:
    """Return a checkpoint, all of whose files are intact, or raise what is wrong with it."""
    if isinstance(found, CheckpointError):
        raise found
    if problem := _damage(found):
        raise CheckpointError(
            f"{found.path} is damaged: {problem}; to go on from the newest intact one, "
            "resume with checkpoint.start: intact"
        )
    return found


def _newest_intact(config: Config, say: Callable[[str], None]) -> Checkpoint:
    for path in _by_leader(lambda: candidates(config.output.run_dir)):
        candidate = _by_leader(partial(read, path))
        if isinstance(candidate, CheckpointError):
            say(f"passed over: {candidate}")
            continue
        if problem := _damage(candidate):
            say(f"passed over: {path} is damaged: {problem}")
            continue
        return candidate
    raise CheckpointError(f"{checkpoint_folder(config.output.run_dir)} holds no intact checkpoint")


def candidates(run_dir: str | Path) -> list[Path]:
    """Return a run's checkpoints, the newest first; a future that was given up comes last."""
    present = checkpoints(checkpoint_folder(run_dir))
    try:
        named = named_newest(run_dir)
    except CheckpointError:
        named = None
    last = step_of(named or present[-1]) if present else 0
    return sorted(present, key=lambda path: (step_of(path) > last, -step_of(path)))


def _by_leader(work: Callable[[], Any]) -> Any:
    """Return on every rank what some work returns on rank 0, or the CheckpointError it raises."""
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            told = [work()]
        except CheckpointError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _damage(checkpoint: Checkpoint) -> str | None:
    """Check every file once, each by one of the ranks, and return what any of them has found."""
    problems: list[str | None] = [None] * dist.get_world_size()
    names = _by_leader(lambda: all_names(checkpoint))
    mine = names[dist.get_rank() :: dist.get_world_size()]
    fault_point("verify", step=checkpoint.step)
    dist.all_gather_object(problems, damage(checkpoint, mine))
    return "; ".join(problem for problem in problems if problem) or None


def _load(engine: Any, checkpoint: Checkpoint, config: Config) -> None:
    """Copy a checkpoint into the weights, the optimizer and the counters of an engine."""
    from deepspeed import zero

    scattered = engine.zero_optimization_partition_weights()
    held = {**named_parameters(engine.module.local_layers()), **engine.module.tied_copies()}
    by_layer: dict[int, dict[str, nn.Parameter]] = {}
    for (index, name), parameter in held.items():
        by_layer.setdefault(index, {})[name] = parameter
    try:
        saved = {index: SavedLayer(checkpoint.path, index) for index in by_layer}
        for index, parameters in by_layer.items():
            with zero.GatheredParameters(
                list(parameters.values()), modifier_rank=0, enabled=scattered
            ):
                for name, parameter in parameters.items():
                    if saved[index].shape(name) != parameter.shape:
                        raise ValueError(
                            f"{name!r} of layer {index} has shape "
                            f"{tuple(saved[index].shape(name))}, not "
                            f"{tuple(parameter.shape)}"
                        )
                    if not scattered or dist.get_rank() == 0:
                        # Masters first: only below fp32 are they more exact than the weights.
                        exact = config.precision == "fp32"
                        weight = saved[index].weight(name, exact=exact)
                        parameter.data.copy_(weight.view_as(parameter))
        for part in fragments(engine, held):
            state = saved[part.layer]
            if part.has_master:
                part.set(MASTER, state.weight(part.name, exact=True)[part.start : part.stop])
            for moment in MOMENTS:
                part.set(moment, state.moment(part.name, moment, part.start, part.stop))
        set_steps(engine, checkpoint.manifest["optimizer"]["steps"])
        set_loss_scale(engine, checkpoint.manifest["optimizer"].get("loss_scale"))
    except (KeyError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        if isinstance(error, RuntimeError) and lost_a_peer(error):
            raise  # ZeRO-3 gathers and scatters what it loads into
        raise CheckpointError(f"{checkpoint.path} does not fit this model: {error}") from None
    engine.global_steps = checkpoint.step


def load_layers(checkpoint: Checkpoint, layers: Mapping[int, nn.Module]) -> None:
    """Copy saved weights into layers of any container.

    Raises:
        CheckpointError: a file is damaged or holds other tensors than its layer.
    """
    for index, layer in layers.items():
        name = weights_name(index)
        problem = damage(checkpoint, [name])
        if problem:
            raise CheckpointError(f"{checkpoint.path} is damaged: {problem}")
        read_layer(checkpoint.path / name, layer)


def read_layer(path: Path, layer: nn.Module) -> None:
    """Copy one weights file into its layer."""
    try:
        tensors = load_file(path)
        if others := sorted({str(t.dtype) for t in tensors.values() if not t.is_floating_point()}):
            raise RuntimeError(f"it holds {', '.join(others)}")
        layer.load_state_dict(tensors)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} does not fit its layer: {error}") from None
