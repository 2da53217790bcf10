"""Which implementation a model's operations use."""

from collections.abc import Callable

import torch
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.loss import TokenLoss
from megatron_gptx.ops import attention, cross_entropy, library


def choose_backend(
    model: nn.Module,
    config: AttentionConfig,
    backend: Backend,
    *,
    device_type: str,
    say: Callable[[str], object],
) -> None:
    """Give every attention and the loss of a model their backend; load the kernels if they serve.

    Args:
        model: holds the attention layers and the loss.
        config: what the attention computes.
        backend: what the user asked for.
        device_type: where the model will run, as torch names it.
        say: takes a line per operation with the choice and its reason, and one before a build.

    Raises:
        UserError: the kernels were asked for and those of the attention cannot run.
    """
    # Every precision of a configuration is one that the kernels take.
    problems = {
        Attention: attention.unsupported(device_type, torch.float32, top_k=config.top_k),
        TokenLoss: cross_entropy.unsupported(device_type, torch.float32),
    }
    if backend == "reference":
        problems = dict.fromkeys(problems, "ops.backend asks for it")
    elif None in problems.values():
        # Last, for it may have to build them.
        missing = library.load(say)
        problems = {kind: problem or missing for kind, problem in problems.items()}
    # The loss has kernels for some devices only: elsewhere PyTorch's are meant.
    if backend == "fused" and (problem := problems[Attention]):
        raise UserError(
            f"ops.backend is fused, but the fused attention cannot run: {problem}; mend that, or "
            "set ops.backend to auto"
        )
    for kind, name in ((Attention, "attention"), (TokenLoss, "loss")):
        problem = problems[kind]
        say(f"{name}: plain PyTorch, since {problem}" if problem else f"{name}: fused kernels")
        for module in model.modules():
            if isinstance(module, kind):
                module.backend = "reference" if problem else "fused"
