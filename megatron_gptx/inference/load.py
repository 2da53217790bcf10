"""A trained model in this process, from a checkpoint of any number of stages."""

import sys
from pathlib import Path

import torch

from megatron_gptx.checkpoint.changes import check_model
from megatron_gptx.checkpoint.choice import at_step, named
from megatron_gptx.checkpoint.layout import (
    Checkpoint,
    CheckpointError,
    VanishedError,
    named_newest,
    newest,
)
from megatron_gptx.checkpoint.load import load_layers
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
        found = newest(run_dir)
        if found is None:
            raise CheckpointError(
                f"{run_dir} holds no checkpoint yet; train first: gptx train with the same "
                "configuration"
            )
        return found
    if wanted.isascii() and wanted.isdigit():
        return at_step(run_dir, int(wanted))
    if not Path(wanted).is_dir():
        raise CheckpointError(
            f"--checkpoint {wanted}: no such folder; give a step, or the folder of a checkpoint"
        )
    return named(Path(wanted))


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
    check_model(checkpoint, config.model, any_seq_length=True)
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
