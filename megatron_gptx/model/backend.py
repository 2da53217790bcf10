"""Which implementation a model's operations use."""

from collections.abc import Callable

import torch
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.embedding import Table
from megatron_gptx.model.projection import Projection
from megatron_gptx.ops import linear
from megatron_gptx.ops.attention import dispatch
from megatron_gptx.ops.kernels import library

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_backend(
    model: nn.Module,
    config: AttentionConfig,
    backend: Backend,
    *,
    device_type: str,
    num_keys: int,
    say: Callable[[str], object],
) -> None:
    """Give every operation of a model its backend; load the kernels if they serve.

    Args:
        model: holds the layers.
        config: what the attention computes.
        backend: what the user asked for.
        device_type: where the model will run, as torch names it.
        num_keys: positions that a query attends to, at most.
        say: takes a line per operation with the choice and its reason, and one before a build.

    Raises:
        UserError: the kernels were asked for and those of the attention cannot run, or
            GPTX_CPU_CAPABILITY names what this CPU cannot run.
    """

    def against_attention() -> str | None:
        # Every precision of a configuration is one that the kernels take.
        return dispatch.unsupported(
            device_type, torch.float32, top_k=config.top_k, num_keys=num_keys
        )

    for_attention = against_attention()
    for_projections = linear.unsupported(device_type, torch.float32)
    if backend == "reference":
        for_attention = for_projections = "ops.backend asks for it"
    elif not (for_attention and for_projections):
        # Last, for it may have to build them.
        missing = library.load(say)
        # Which GPUs they were compiled for is known now.
        for_attention = for_attention or missing or against_attention()
        for_projections = for_projections or missing
    # Projections have kernels for CPUs only, and elsewhere PyTorch's are as good.
    if backend == "fused" and for_attention:
        raise UserError(
            f"ops.backend is fused, but the fused attention cannot run: {for_attention}; mend "
            "that, or set ops.backend to auto"
        )
    say(f"attention: {_implementation(for_attention, device_type)}")
    say(f"projections and loss: {_implementation(for_projections, device_type)}")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = "reference" if for_attention else "fused"
        if isinstance(module, (Projection, Table)):
            module.backend = "reference" if for_projections else "fused"


def _implementation(problem: str | None, device_type: str) -> str:
    if problem:
        return f"plain PyTorch, since {problem}"
    return f"fused kernels, {library.cpu_capability()}" if device_type == "cpu" else "fused kernels"
