"""A trained model in this process, from a checkpoint of any number of stages."""

import sys
from pathlib import Path

import torch

from megatron_gptx.checkpoint.changes import check_model
from megatron_gptx.checkpoint.layout import (
    Checkpoint,
    CheckpointError,
    VanishedError,
    checkpoint_folder,
    checkpoints,
    named_newest,
    newest,
    read,
    step_name,
)
from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.model.backend import choose_backend
from megatron_gptx.model.precision import DTYPES
from megatron_gptx.model.sequential import GPTXSequential


def choose_checkpoint(run_dir: str, wanted: str | None) -> Checkpoint:
    """Return a run's newest checkpoint, or the one that `--checkpoint` names.

    Args:
        run_dir: the run folder.
        wanted: a step of that run, or the folder of any checkpoint, or of any run; null means the
            newest one of that run.

    Raises:
        CheckpointError: there is none, or its manifest cannot be read.
    """
    if wanted is None:
        return _newest(run_dir, "train first: gptx train with the same configuration")
    if not (wanted.isascii() and wanted.isdigit()):
        folder = Path(wanted)
        if checkpoint_folder(folder).is_dir():
            return _newest(wanted, "name another run")
        if not folder.is_dir():
            raise CheckpointError(
                f"--checkpoint {wanted}: no such folder; give a step, or the folder of a checkpoint"
            )
        return read(folder)
    folder = checkpoint_folder(run_dir)
    name = step_name(int(wanted))
    for path in checkpoints(folder):
        if path.stem == name:
            return read(path)
    there = ", ".join(str(int(path.stem.removeprefix("step-"))) for path in checkpoints(folder))
    raise CheckpointError(
        f"--checkpoint {wanted}: {folder} holds no checkpoint of that step; there are: "
        f"{there or 'none'}"
    )


def _newest(run_dir: str, remedy: str) -> Checkpoint:
    found = newest(run_dir)
    if found is None:
        raise CheckpointError(f"{run_dir} holds no checkpoint yet; {remedy}")
    return found


def load_chosen(
    config: Config, wanted: str | None, device: torch.device
) -> tuple[GPTXSequential, Checkpoint]:
    """Return the model of the checkpoint that `choose_checkpoint` finds, and that checkpoint.

    A run that trains meanwhile may delete its newest one while it is read: then there is a newer.
    """
    run_dir = config.output.run_dir
    while True:
        checkpoint = choose_checkpoint(run_dir, wanted)
        try:
            return load_model(config, checkpoint, device), checkpoint
        except VanishedError:
            if wanted is not None or named_newest(run_dir) == checkpoint.path:
                raise


def load_model(config: Config, checkpoint: Checkpoint, device: torch.device) -> GPTXSequential:
    """Return a checkpoint's model, ready for inference.

    Without a table of positions, model.seq_length may be another one than in training.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model.
        UserError: the configuration asks for kernels that cannot run.
    """
    check_model(checkpoint, _with_the_saved_length(config.model, checkpoint))
    model = GPTXSequential(config.model)
    load_layers(checkpoint, model.local_layers())
    # Half precision is for accelerators; on a CPU it would only round.
    dtype = torch.float32 if device.type == "cpu" else DTYPES[config.precision]
    choose_backend(
        model,
        config.model.attention,
        config.ops.backend,
        device_type=device.type,
        num_keys=config.model.seq_length,
        say=lambda line: sys.stderr.write(f"{line}\n"),
    )
    return model.to(device, dtype).eval()


def _with_the_saved_length(model: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """Return the model with the checkpoint's seq_length, where no weights depend on it."""
    if model.position == "learned":
        return model
    saved = checkpoint.manifest["config"]["model"].get("seq_length")
    return model.model_copy(update={"seq_length": saved})
