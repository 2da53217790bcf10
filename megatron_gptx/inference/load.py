"""A trained model in this process, from a checkpoint of any number of stages."""

import sys

import torch

from megatron_gptx.checkpoint.changes import check_model
from megatron_gptx.checkpoint.choice import choose_checkpoint
from megatron_gptx.checkpoint.latest import named_newest
from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.checkpoint.manifest import Checkpoint, VanishedError
from megatron_gptx.config.schema import Config
from megatron_gptx.model.backend import DTYPES, choose_backend
from megatron_gptx.model.sequential import GPTXSequential


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
