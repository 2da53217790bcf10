"""Loading: nothing is read that the manifest does not vouch for, and nothing is unpickled."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from megatron_gptx.checkpoint.changes import (
    TWO_EXPERIMENTS,
    changed_options,
    check_model,
    check_optimizer,
    mixed_experiments,
)
from megatron_gptx.checkpoint.choice import at_step, candidates, named
from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest, newest_sound, point_to
from megatron_gptx.checkpoint.manifest import (
    Checkpoint,
    CheckpointError,
    VanishedError,
    printable,
    read,
    still_there,
)
from megatron_gptx.checkpoint.names import checkpoint_folder, weights_name
from megatron_gptx.checkpoint.optimizer_state import (
    MASTER,
    fragments,
    named_parameters,
    set_loss_scale,
    set_steps,
)
from megatron_gptx.checkpoint.safetensors_files import SavedLayer
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.fault_injection import fault_point
from megatron_gptx.distributed.process import lost_a_peer


def resume(
    engine: Any,
    *,
    config: Config,
    say: Callable[[str], None],
    data: Mapping[str, Any] | None = None,
) -> Checkpoint | None:
    """Load the run's checkpoint that `checkpoint.start` means; every rank calls this.

    The checkpoint may have been saved by any number of stages and replicas, at any ZeRO stage and
    in any precision.

    Args:
        engine: the DeepSpeed engine.
        config: the run's configuration now.
        say: takes one line for each option that was another one when the checkpoint was saved.
        data: the fingerprints of the training data, as rank 0 knows them.

    Returns:
        What has been loaded, or None where there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged, of another model, optimizer or experiment, or
            there must be none.
    """
    found = _choose(config, say)
    if found is None:
        return None
    check_model(found, config.model)
    check_optimizer(found, config.optimizer.name)
    mixed = _by_leader(lambda: mixed_experiments(found, config, data))
    if isinstance(mixed, CheckpointError):
        raise mixed
    if mixed and not config.checkpoint.accept_changes:
        raise CheckpointError(
            "\n  ".join([f"{found.path} is of another experiment:", *mixed])
            + f"\n{TWO_EXPERIMENTS}"
        )
    listed = changed_options(found, config)
    # Data that has another content under the same name is no change of an option.
    names = tuple(change.partition(" ")[0] for change in listed)
    unseen = [line for line in mixed if not any(n.startswith(line.split(":")[0]) for n in names)]
    for change in (*listed, *unseen):
        say(printable(f"changed since {found.path.name}: {change}"))
    _use(found, engine, config)
    # What was passed over is given up: nothing goes back to it, or keeps it instead of another.
    if config.checkpoint.start != "auto" and (problem := _by_leader(partial(point_to, found.path))):
        raise problem
    return found


def initialize(engine: Any, source: Path, *, config: Config) -> Checkpoint:
    """Load the weights of another run into a new one; every rank calls this.

    Args:
        engine: the DeepSpeed engine, whose optimizer stays as it is.
        source: a run, whose newest checkpoint is taken, or one checkpoint.
        config: the run's configuration.

    Returns:
        What has been loaded.

    Raises:
        CheckpointError: there is none, or it is damaged or of another model.
    """
    found = _intact(_by_leader(partial(named, source)), _CHOOSE)
    check_model(found, config.model, any_seq_length=True)
    fault_point("load", step=found.step)
    with _fits(found):
        _load_weights(engine, _open(engine, found), config)
    return found


def go_back(engine: Any, *, config: Config) -> Checkpoint | None:
    """Load the run's newest checkpoint that was not saved amid bad steps; every rank calls this.

    Returns None where there is none.

    Raises:
        CheckpointError: it is damaged or of another model.
    """
    found = _by_leader(lambda: newest_sound(config.output.run_dir))
    if found is not None:
        _use(_intact(found), engine, config)
    return found


def _use(found: Checkpoint, engine: Any, config: Config) -> None:
    """Load a checkpoint whose files are intact into weights, optimizer and counters."""
    check_model(found, config.model)
    fault_point("load", step=found.step)
    with _fits(found):
        saved = _open(engine, found)
        _load_weights(engine, saved, config)
        _load_optimizer(engine, saved, found)
    engine.global_steps = found.step


def _choose(config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to start from, all of whose files are intact, as every rank does."""
    run_dir, start = config.output.run_dir, config.checkpoint.start
    if (step := config.checkpoint.start_step) is not None:
        return _intact(_by_leader(lambda: at_step(run_dir, step)))
    found = _by_leader(lambda: newest(run_dir))
    if start == "intact" and found is not None:
        return _newest_intact(config, say)
    if isinstance(found, Checkpoint) and start == "fresh":
        raise CheckpointError(
            f"checkpoint.start is 'fresh', but {found.path} exists; choose another "
            "output.run_dir, or checkpoint.start: auto to resume"
        )
    return None if found is None else _intact(found)


_CHOOSE = "name another one in checkpoint.initialize_from"
_GO_ON = "to go on from the newest intact one, resume with checkpoint.start: intact"


def _intact(found: Checkpoint | CheckpointError, remedy: str = _GO_ON) -> Checkpoint:
    """Return a checkpoint, all of whose files are intact, or raise what is wrong with it."""
    if isinstance(found, CheckpointError):
        raise found
    if problem := _damage(found):
        if gone := _by_leader(lambda: still_there(found.path)):
            raise gone
        raise CheckpointError(f"{found.path} is damaged: {problem}; {remedy}")
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
    if isinstance(names, CheckpointError):
        return str(names)
    mine = names[dist.get_rank() :: dist.get_world_size()]
    fault_point("verify", step=checkpoint.step)
    try:
        problem = damage(checkpoint, mine)
    except VanishedError as error:
        problem = str(error)  # to all ranks, which wait for it
    dist.all_gather_object(problems, problem)
    return "; ".join(problem for problem in problems if problem) or None


@contextmanager
def _fits(checkpoint: Checkpoint) -> Iterator[None]:
    """Say which checkpoint it is that does not fit."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        if isinstance(error, RuntimeError) and lost_a_peer(error):
            raise  # ZeRO-3 gathers and scatters what it loads into
        still_there(checkpoint.path)
        raise CheckpointError(f"{checkpoint.path} does not fit this model: {error}") from None


class _Saved(NamedTuple):
    """Parameters of this rank by layer and name, and what a checkpoint holds of those layers."""

    held: dict[tuple[int, str], nn.Parameter]
    layers: dict[int, SavedLayer]


def _open(engine: Any, checkpoint: Checkpoint) -> _Saved:
    held = {**named_parameters(engine.module.local_layers()), **engine.module.tied_copies()}
    layers = dict.fromkeys(index for index, _ in held)
    return _Saved(held, {index: SavedLayer(checkpoint.path, index) for index in layers})


def _load_weights(engine: Any, saved: _Saved, config: Config) -> None:
    """Copy weights, and master weights where there are any, into an engine."""
    from deepspeed import zero

    scattered = engine.zero_optimization_partition_weights()
    by_layer: dict[int, dict[str, nn.Parameter]] = {}
    for (index, name), parameter in saved.held.items():
        by_layer.setdefault(index, {})[name] = parameter
    for index, parameters in by_layer.items():
        layer = saved.layers[index]
        with zero.GatheredParameters(list(parameters.values()), modifier_rank=0, enabled=scattered):
            for name, parameter in parameters.items():
                if layer.shape(name) != parameter.shape:
                    raise ValueError(
                        f"{name!r} of layer {index} has shape {tuple(layer.shape(name))}, not "
                        f"{tuple(parameter.shape)}"
                    )
                if not scattered or dist.get_rank() == 0:
                    # Masters first: only below fp32 are they more exact than the weights.
                    weight = layer.weight(name, exact=config.precision == "fp32")
                    parameter.data.copy_(weight.view_as(parameter))
    for part in fragments(engine, saved.held):
        if part.has_master:
            weight = saved.layers[part.layer].weight(part.name, exact=True)
            part.set(MASTER, weight[part.start : part.stop])


def _load_optimizer(engine: Any, saved: _Saved, checkpoint: Checkpoint) -> None:
    """Copy moments, counters and loss scale into an engine."""
    for part in fragments(engine, saved.held):
        for moment in part.moments:
            state = saved.layers[part.layer].moment(part.name, moment, part.start, part.stop)
            part.set(moment, state)
    set_steps(engine, checkpoint.manifest["optimizer"]["steps"])
    set_loss_scale(engine, checkpoint.manifest["optimizer"].get("loss_scale"))


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
        still_there(path.parents[1])
        raise CheckpointError(f"{path} does not fit its layer: {error}") from None
