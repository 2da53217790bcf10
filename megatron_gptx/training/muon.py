"""Muon: orthogonalised momentum for the weight matrices of blocks, AdamW for all else."""

from typing import Any

import torch
from torch import Tensor

from megatron_gptx.checkpoint.optimizer_state import begin_states

# Of the odd polynomial that takes singular values from (0, 1] to about 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7
# Updates have the root mean square of AdamW's, so that its learning rate and decay carry over.
_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalised momentum, and other groups by AdamW.

    A group with `num_matrices` holds matrices: for each parameter, how many lie one below another
    in it. Queries, keys and values are three, each orthogonalised for itself.

    Sources: Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/; for weight
    decay and the size of updates, Liu et al. 2025, arXiv:2502.16982, section 2.2.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: list[float],
        eps: float,
        momentum: float,
        nesterov: bool,
        newton_schulz_steps: int,
    ) -> None:
        own = {
            "momentum": momentum,
            "nesterov": nesterov,
            "newton_schulz_steps": newton_schulz_steps,
        }
        super().__init__(groups, {"lr": lr, **own})
        # It shares groups and state: a rate that is set here holds there.
        rest = [group for group in self.param_groups if "num_matrices" not in group]
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            if "num_matrices" in group:
                self._update_matrices(group)
        self.adamw.step()

    def _update_matrices(self, group: dict[str, Any]) -> None:
        for parameter, number in zip(group["params"], group["num_matrices"], strict=True):
            if parameter.grad is not None:
                (state,) = begin_states(self, group, [parameter])
                _update(parameter, number, state, group)


def _update(
    parameter: Tensor, number: int, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    assert parameter.grad is not None, "the caller leaves those without a gradient out"
    update = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
    if group["nesterov"]:
        update = parameter.grad.lerp(update, group["momentum"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    for weight, part in zip(parameter.chunk(number), update.chunk(number), strict=True):
        size = _RMS * max(part.shape) ** 0.5
        # Without a name of its own, no iterate outlives its use: costs/memory.py counts them.
        weight.add_(
            orthogonalize(part, steps=group["newton_schulz_steps"]), alpha=-group["lr"] * size
        )
    state["step"] += 1


def orthogonalize(matrix: Tensor, *, steps: int) -> Tensor:
    """Return about U V^T of a matrix U S V^T, by Newton-Schulz iterations.

    Singular values come close to 1, between 0.7 and 1.2 after five steps; those of 0 stay 0.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
