"""Faults on tensors that GPTX_FAULT asks for, where a run would meet them by bad luck."""

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_gptx.distributed.fault_injection import VARIABLE, fault_strikes


def poison_gradients(module: Any) -> None:
    """Let the fault `nan` at `gradient` meet the first parameter of this rank's layers."""
    if os.environ.get(VARIABLE):
        next(module.parameters()).register_hook(partial(_poison, module.runner))


def flip_a_bit(module: Any, *, step: int) -> None:
    """Let the fault `flip` at `weights` meet the last element of this rank's last parameter."""
    if fault_strikes("flip", "weights", step=step):
        weights = list(module.parameters())[-1].data.view(-1)
        # The least significant bit: a difference that no loss would ever show.
        weights[-1:].view(torch.uint8)[0] ^= 1


def _poison(runner: Any, gradient: Tensor) -> Tensor | None:
    strikes = fault_strikes("nan", "gradient", step=runner.step)
    return torch.full_like(gradient, float("nan")) if strikes else None
