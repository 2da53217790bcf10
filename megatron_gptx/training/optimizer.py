"""AdamW: which parameters decay, and which implementation runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from megatron_gptx.model.initialize import parameter_roles


class Implementation(NamedTuple):
    """An AdamW that can run here, and why it was chosen."""

    build: Callable[..., torch.optim.Optimizer]
    reason: str


def choose_adamw(device: torch.device) -> Implementation:
    """Return the fastest AdamW for a device: Apex's where installed, else torch's fused one."""
    if device.type == "cuda":
        try:
            import amp_C  # noqa: F401  Apex imports without its extensions, and fails when used
            from apex.optimizers import FusedAdam
        except ImportError as error:
            missing = str(error)
        else:
            return Implementation(FusedAdam, "Apex FusedAdam is installed")
        fused = _torch_adamw(fused=True)
        return Implementation(fused, f"torch's fused AdamW, since Apex is not there ({missing})")
    return Implementation(_torch_adamw(fused=True), "torch's fused AdamW for the CPU")


def _torch_adamw(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    def build(groups: list[dict[str, Any]], **common: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **common, **options)

    return build


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_embeddings: bool
) -> list[dict[str, Any]]:
    """Sort parameters by role: matrices decay, embedding tables only where asked.

    Gates, norms and biases never decay.
    """
    decaying = {"weight", "stream_weight"} | ({"embedding"} if decay_embeddings else set())
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for _, parameter, role in parameter_roles(model):
        group = decay if role in decaying else gates if role == "gate" else keep
        group.append(parameter)
    # DeepSpeed flattens each group into one fp16 or bf16 buffer. A gate has one element: every
    # parameter after it would start at an unaligned address, where a GPU's matrix products are
    # much slower. So gates come last.
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep + gates, "weight_decay": 0.0},
    ]
