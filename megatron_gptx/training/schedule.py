"""Learning rates as pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Any

from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import ScheduleConfig


def learning_rate(step: int, *, peak: float, steps: int, schedule: ScheduleConfig) -> float:
    """Return the rate of the step-th update, counted from 0, of a run of `steps`.

    Warm-up reaches the peak at step `warmup_steps`; its first update already moves. After the
    decay the rate stays at `peak * min_lr_ratio`.

    Sources: cosine decay, Loshchilov & Hutter, arXiv:1608.03983; warm-up, stable, decay (WSD), Hu
    et al., arXiv:2404.06395; one cycle, Smith & Topin, arXiv:1708.07120.
    """
    warmup = schedule.warmup_steps
    floor = peak * schedule.min_lr_ratio
    if step < warmup:
        rise = (step + 1) / (warmup + 1)
        if schedule.name == "one_cycle":
            return floor + (peak - floor) * (1 - math.cos(math.pi * rise)) / 2
        return peak * rise
    if schedule.name == "constant":
        return peak
    done = min(1.0, (step - _decay_start(steps, schedule)) / decay_length(steps, schedule))
    if done <= 0:
        return peak
    if schedule.name in ("linear", "wsd"):
        return peak + (floor - peak) * done
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def rate_change(saved: Mapping[str, Any], config: Config, *, step: int) -> str | None:
    """Return how the learning rate jumps where a run goes on with other options, or None.

    Args:
        saved: the configuration of the checkpoint, as it was saved.
        config: the configuration now.
        step: the step of the checkpoint.
    """
    assert config.training.steps is not None, "the launcher turns epochs into steps"
    try:
        schedule = ScheduleConfig.model_validate(saved.get("schedule", {}))
        peak, steps = float(saved["optimizer"]["lr"]), int(saved["training"]["steps"])
    except (KeyError, TypeError, ValueError):
        return None  # of a version that knew other schedules
    planned = learning_rate(step, peak=peak, steps=steps, schedule=schedule)
    rate = learning_rate(
        step, peak=config.optimizer.lr, steps=config.training.steps, schedule=config.schedule
    )
    if math.isclose(rate, planned, rel_tol=1e-9) or step >= config.training.steps:
        return None
    return (
        f"the learning rate of step {step + 1} is {rate:.3g}; with the options of the checkpoint "
        f"it would be {planned:.3g}"
    )


def decay_length(steps: int, schedule: ScheduleConfig) -> int:
    """Return how many steps the decay takes, the default filled in."""
    if schedule.decay_steps is not None:
        return schedule.decay_steps
    if schedule.name == "wsd":
        return max(1, steps // 10)
    return max(1, steps - schedule.warmup_steps)


def _decay_start(steps: int, schedule: ScheduleConfig) -> int:
    if schedule.name == "wsd":
        return max(schedule.warmup_steps, steps - decay_length(steps, schedule))
    return schedule.warmup_steps
