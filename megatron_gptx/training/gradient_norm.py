"""One gradient norm over all pipeline stages, where DeepSpeed's own would not be that.

Its fp32 path without ZeRO clips every stage by its own norm and applies NaN gradients. Its ZeRO-1
drops empty parameter groups, then reduces a norm for each group that is left: stages that hold
different groups would wait for one another for ever. In bf16 a stage without a gradient fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import combine_grad_norm_groups
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
        device: torch.device,
    ) -> None:
        """Watch some layers of the layer list.

        Args:
            layers: parameters by layer, each tied parameter in one layer only.
            num_layers: length of the layer list over all stages.
            max_norm: largest norm that is left alone; None only measures.
            stages: the processes that hold the other layers of this replica.
            device: where gradients are; a stage with nothing but a tied head owns no parameter.
        """
        self.device = device
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
        squares = torch.zeros(self.num_layers, dtype=torch.float64, device=self.device)
        for index, parameters in self.layers.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack(torch._foreach_norm(gradients)).double()
                squares[index] = norms.square().sum()
        if self.stages is not None:
            dist.all_reduce(squares, group=self.stages)
        return squares.sum().sqrt()


def let_stages_differ(optimizer: Any, filled: Sequence[bool], device: torch.device) -> None:
    """Make DeepSpeed's optimizer take part in every norm, whatever this stage has parameters of.

    Args:
        optimizer: of DeepSpeed's, with ZeRO or without.
        filled: whether this stage has parameters in each group, in the order of all stages.
        device: where gradients are.
    """
    if hasattr(optimizer, "get_grad_norm_direct") and not all(filled):
        _join_group_norms(optimizer, filled)
    if hasattr(optimizer, "get_grads_for_norm"):
        _allow_no_gradients(optimizer, device)


def _join_group_norms(optimizer: Any, filled: Sequence[bool]) -> None:
    """Reduce a norm for each group of all stages (fp32 and fp16), zero where there is none here."""

    def scaled_global_norm(norm_type: int = 2) -> Tensor:
        places, norms = iter(range(sum(filled))), []
        for has_parameters in filled:
            own: tuple[Any, Any] = ([], [])
            if has_parameters:
                place = next(places)
                own = optimizer.averaged_gradients[place], optimizer.params_in_partition[place]
            norms.append(optimizer.get_grad_norm_direct(*own, norm_type))
        return combine_grad_norm_groups(norms, norm_type=norm_type)

    optimizer.scaled_global_norm = scaled_global_norm


def _allow_no_gradients(optimizer: Any, device: torch.device) -> None:
    """Give the norm (bf16) a zero where a stage has nothing but a table that another one counts."""
    of_deepspeed = optimizer.get_grads_for_norm

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        if for_clipping:
            return of_deepspeed(for_clipping=True)
        gradients, of_experts = of_deepspeed()
        return gradients or [torch.zeros(1, device=device)], of_experts

    optimizer.get_grads_for_norm = get_grads_for_norm
