"""A trained model in this process, from a checkpoint of any number of stages."""

import sys

import torch

from megatron_gptx.checkpoint.changes import check_model
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


def load_model(config: Config, device: torch.device) -> tuple[GPTXSequential, Checkpoint]:
    """Return the newest checkpoint's model, ready for inference, and the checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or of another model.
        UserError: the configuration asks for kernels that cannot run.
    """
    model, checkpoint = _load_newest(config)
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
    return model.to(device, dtype).eval(), checkpoint


def _load_newest(config: Config) -> tuple[GPTXSequential, Checkpoint]:
    """Load the newest checkpoint, also of a run that saves and deletes meanwhile."""
    while True:
        checkpoint = newest(config.output.run_dir)
        if checkpoint is None:
            raise CheckpointError(
                f"{config.output.run_dir} holds no checkpoint yet; train first: gptx train "
                "with the same configuration"
            )
        check_model(checkpoint, config.model)
        model = GPTXSequential(config.model)
        try:
            load_layers(checkpoint, model.local_layers())
        except VanishedError:
            if named_newest(config.output.run_dir) == checkpoint.path:
                raise  # else there is a newer one
        else:
            return model, checkpoint
