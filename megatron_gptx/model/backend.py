"""Which implementation a model's operations use."""

from collections.abc import Callable

import torch
from torch import nn

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.model import AttentionConfig
from megatron_gptx.config.ops import Backend
from megatron_gptx.model.attention import Attention
from megatron_gptx.model.loss import TokenLoss
from megatron_gptx.model.projection import Projection
from megatron_gptx.ops import attention, cross_entropy, library, linear

Operation = type[Attention] | type[Projection] | type[TokenLoss]
NAMES: dict[Operation, str] = {
    Attention: "attention",
    Projection: "projections",
    TokenLoss: "loss",
}


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
        model: holds layers, and the loss where it is trained.
        config: what the attention computes.
        backend: what the user asked for.
        device_type: where the model will run, as torch names it.
        num_keys: positions that a query attends to, at most.
        say: takes a line per operation with the choice and its reason, and one before a build.

    Raises:
        UserError: the kernels were asked for and those of the attention cannot run.
    """

    def against_attention() -> str | None:
        # Every precision of a configuration is one that the kernels take.
        return attention.unsupported(
            device_type, torch.float32, top_k=config.top_k, num_keys=num_keys
        )

    problems: dict[Operation, str | None] = {
        Attention: against_attention(),
        Projection: linear.unsupported(device_type),
        TokenLoss: cross_entropy.unsupported(device_type, torch.float32),
    }
    if backend == "reference":
        problems = dict.fromkeys(problems, "ops.backend asks for it")
    elif None in problems.values():
        # Last, for it may have to build them.
        missing = library.load(say)
        problems = {kind: problem or missing for kind, problem in problems.items()}
        # Which GPUs they were compiled for is known now.
        problems[Attention] = problems[Attention] or against_attention()
    # The others have kernels for some devices only, and elsewhere PyTorch's are as good.
    if backend == "fused" and (problem := problems[Attention]):
        raise UserError(
            f"ops.backend is fused, but the fused attention cannot run: {problem}; mend that, or "
            "set ops.backend to auto"
        )
    for kind, problem in problems.items():
        implementation = f"plain PyTorch, since {problem}" if problem else "fused kernels"
        say(f"{NAMES[kind]}: {implementation}")
        for module in model.modules():
            if isinstance(module, kind):
                module.backend = "reference" if problem else "fused"
