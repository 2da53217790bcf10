"""Which parameters an optimizer treats alike, and which implementation of it runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from megatron_gptx.config.optimizers import OPTIMIZERS, OptimizerName
from megatron_gptx.config.schema import Config
from megatron_gptx.model.initialize import parameter_roles
from megatron_gptx.training.lion import Lion
from megatron_gptx.training.muon import Muon

# How many matrices lie in a parameter of these roles. The head's is none of them: like a table of
# embeddings, it has a row for each token.
_MATRICES = {"weight": 1, "qkv_weight": 3, "stream_weight": 1}


class Implementation(NamedTuple):
    """An optimizer that can run here, and why it was chosen."""

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


def _choose_lion(device: torch.device) -> Implementation:
    return Implementation(Lion, "Lion, of PyTorch's operations on many tensors at once")


def _choose_muon(device: torch.device) -> Implementation:
    return Implementation(Muon, "Muon for matrices of blocks, torch's fused AdamW for the rest")


CHOICES: Mapping[OptimizerName, Callable[[torch.device], Implementation]] = {
    "adamw": choose_adamw,
    "lion": _choose_lion,
    "muon": _choose_muon,
}


def build_optimizer(
    config: Config, model: nn.Module, device: torch.device, say: Callable[[str], None]
) -> torch.optim.Optimizer:
    """Return the configured optimizer of a model's parameters, which lie on `device`."""
    options = config.optimizer
    groups = parameter_groups(
        model,
        weight_decay=options.weight_decay,
        decay_embeddings=options.decay_embeddings,
        optimizer=options.name,
    )
    choice = CHOICES[options.name](device)
    say(f"optimizer: {choice.reason}")
    for group in groups:
        say(f"  weight decay {group['weight_decay']}: {_count(group['params'])}")
    return choice.build(groups, lr=options.lr, **options.own_options)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_embeddings: bool,
    optimizer: OptimizerName = "adamw",
) -> list[dict[str, Any]]:
    """Sort parameters by role: matrices decay, embedding tables only where asked.

    Gates, norms and biases never decay. `moments` names what the optimizer keeps of each parameter.
    One that treats the matrices of blocks apart gets them as the first group.
    """
    facts = OPTIMIZERS[optimizer]
    decaying = {*_MATRICES, "head"} | ({"embedding"} if decay_embeddings else set())
    matrices: dict[nn.Parameter, int] = {}
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for _, parameter, role in parameter_roles(model):
        if facts.matrix_moments is not None and role in _MATRICES:
            matrices[parameter] = _MATRICES[role]
        else:
            group = decay if role in decaying else gates if role == "gate" else keep
            group.append(parameter)
    # DeepSpeed flattens each group into one fp16 or bf16 buffer. A gate has one element: every
    # parameter after it would start at an unaligned address, where a GPU's matrix products are
    # much slower. So gates come last.
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": weight_decay, "moments": facts.moments},
        {"params": keep + gates, "weight_decay": 0.0, "moments": facts.moments},
    ]
    if facts.matrix_moments is not None:
        apart = {"moments": facts.matrix_moments, "num_matrices": list(matrices.values())}
        groups.insert(0, {"params": list(matrices), "weight_decay": weight_decay, **apart})
    return groups


def _count(parameters: list[Any]) -> str:
    # With ZeRO-3 a parameter is empty here, and its full size is in ds_numel.
    elements = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    return f"{elements:,} parameters in {len(parameters)} tensors on rank 0"
