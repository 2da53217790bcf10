"""What is known of every optimizer without PyTorch: its options, and the tensors that it keeps.

A new optimizer is a row here, a class in `training/` and a row in `training/optimizer.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

OptimizerName = Literal["adamw", "lion", "muon"]


class OptimizerFacts(NamedTuple):
    """What configuration, plan and checkpoints ask of an optimizer."""

    options: Mapping[str, Any]
    """The options of its own, with their defaults; `OptimizerConfig` describes them."""
    moments: tuple[str, ...]
    """Names of the float32 tensors that it keeps for a parameter, each as large as that one."""
    matrix_moments: tuple[str, ...] | None = None
    """Those for a block's weight matrices where they are others. Such an optimizer updates whole
    matrices, one after another."""
    num_updates: int = 0
    """How many float32 tensors, as large as all that is updated, live only during a step."""
    largest_zero_stage: int = 3
    """ZeRO splits parameters from stage 1 on: 0 means that the optimizer needs whole ones."""


_ADAM_OPTIONS = {"betas": [0.9, 0.95], "eps": 1e-8}
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")

OPTIMIZERS: Mapping[str, OptimizerFacts] = {
    "adamw": OptimizerFacts(options=_ADAM_OPTIONS, moments=_ADAM_MOMENTS),
    "lion": OptimizerFacts(options={"betas": [0.9, 0.99]}, moments=("exp_avg",), num_updates=1),
    "muon": OptimizerFacts(
        options={**_ADAM_OPTIONS, "momentum": 0.95, "nesterov": True, "newton_schulz_steps": 5},
        moments=_ADAM_MOMENTS,
        matrix_moments=("momentum_buffer",),
        largest_zero_stage=0,
    ),
}
