"""Lion: the sign of an interpolated momentum, with one state tensor instead of AdamW's two."""

from typing import Any

import torch

from megatron_gptx.checkpoint.optimizer_state import begin_states


class Lion(torch.optim.Optimizer):
    """Moves every element by the learning rate, in the direction of its momentum's sign.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675,
    Algorithm 2. Weight decay is decoupled and multiplied by the learning rate, as there.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: list[float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                _update(parameters, begin_states(self, group, parameters), group)


def _update(
    parameters: list[torch.Tensor], states: list[dict[str, torch.Tensor]], group: dict[str, Any]
) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    momenta = [state["exp_avg"] for state in states]
    of_update, of_momentum = group["betas"]
    updates = torch._foreach_lerp(momenta, gradients, 1 - of_update)
    torch._foreach_sign_(updates)
    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(parameters, updates, alpha=-group["lr"])
    torch._foreach_lerp_(momenta, gradients, 1 - of_momentum)
    torch._foreach_add_([state["step"] for state in states], 1)
