"""A trained model in this process, from a checkpoint of any number of stages."""

import sys

import torch

from megatron_gptx.checkpoint.layout import Checkpoint, CheckpointError, newest
from megatron_gptx.checkpoint.load import check_model, load_layers
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
    checkpoint = newest(config.output.run_dir)
    if checkpoint is None:
        raise CheckpointError(
            f"{config.output.run_dir} holds no checkpoint yet; train first: ./deepy.py train.py "
            "with the same configuration"
        )
    check_model(checkpoint, config.model)
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
    return model.to(device, dtype).eval(), checkpoint
