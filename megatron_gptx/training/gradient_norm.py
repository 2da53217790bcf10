"""One gradient norm over all pipeline stages, for optimizers that DeepSpeed does not wrap.

DeepSpeed's own fp32 path without ZeRO clips every stage by its own norm and applies NaN gradients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalNormClipping:
    """Clips the gradients of all stages by their common norm before each optimizer step.

    A step whose norm is not finite is skipped. DeepSpeed reads both results from the optimizer
    afterwards, where its own optimizers leave them: `_global_grad_norm` and `overflow`.

    The squares are summed per layer and then in the order of the layers, in float64: the norm is
    the same number in every pipeline layout.
    """

    def __init__(
        self,
        layers: Mapping[int, Sequence[nn.Parameter]],
        *,
        num_layers: int,
        max_norm: float | None,
        stages: dist.ProcessGroup | None,
    ) -> None:
        """Watch some layers of the layer list.

        Args:
            layers: parameters by layer, each tied parameter in one layer only.
            num_layers: length of the layer list over all stages.
            max_norm: largest norm that is left alone; None only measures.
            stages: the processes that hold the other layers of this replica.
        """
        self.layers = layers
        self.num_layers = num_layers
        self.max_norm = max_norm
        self.stages = stages

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Run as a step pre-hook of a `torch.optim.Optimizer`."""
        norm = self.norm().item()
        optimizer._global_grad_norm = norm
        optimizer.overflow = not torch.isfinite(torch.tensor(norm)).item()
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if optimizer.overflow:
            # An optimizer leaves a parameter without a gradient, and its moments, as they are.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        elif self.max_norm is not None and norm > self.max_norm:
            torch._foreach_mul_(gradients, self.max_norm / norm)

    def norm(self) -> Tensor:
        """Return the norm of all gradients, a float64 scalar."""
        device = next(p.device for layer in self.layers.values() for p in layer)
        squares = torch.zeros(self.num_layers, dtype=torch.float64, device=device)
        for index, parameters in self.layers.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack(torch._foreach_norm(gradients)).double()
                squares[index] = norms.square().sum()
        if self.stages is not None:
            dist.all_reduce(squares, group=self.stages)
        return squares.sum().sqrt()
