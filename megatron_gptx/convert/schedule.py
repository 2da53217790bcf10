"""The learning rate's course, as other tools describe it."""

from megatron_gptx.convert.ledger import Ledger


def set_warmup(ledger: Ledger, names: list[str], steps: float | None) -> int:
    """Write and return how many steps the rate rises.

    Args:
        ledger: the settings.
        names: those that went into it.
        steps: how many they say; None where there is no telling.
    """
    for name in names:
        if name and ledger.open(name):
            if steps is None:
                ledger.refuse(name, "a share of steps whose number is not given")
            else:
                ledger.used(name, "schedule.warmup_steps")
    warmup = max(1, round(steps)) if steps else 0  # less than half a step is a warm-up still
    ledger.options["schedule.warmup_steps"] = warmup
    return warmup


def set_lowest(ledger: Ledger) -> float:
    """Write and return the last rate as a share of the peak."""
    peak = ledger.options.get("optimizer.lr")
    lowest = ledger.value("min_lr", 0.0)
    share = lowest / peak if isinstance(peak, int | float) and peak else 0.0
    if ledger.open("min_lr"):
        if peak is None:
            ledger.refuse("min_lr", "a share of lr, which is not given")
        else:
            ledger.used("min_lr", "schedule.min_lr_ratio")
    ledger.options["schedule.min_lr_ratio"] = share
    return share


def set_decay(ledger: Ledger, names: list[str], end: float | None, warmup: int) -> None:
    """Write how long the rate falls, where it does not fall to the end of the run.

    Args:
        ledger: the settings.
        names: those that say where the fall ends.
        end: the step it ends at; None means the run's last.
        warmup: the steps before it.
    """
    steps = ledger.options.get("training.steps")
    for name in names:
        if name and ledger.open(name):
            if end is None:
                ledger.refuse(name, "a share of steps whose number is not given")
            elif end <= warmup:
                ledger.refuse(name, f"ends before the {warmup} steps of warm-up do")
            else:
                ledger.used(name, "schedule.decay_steps")
    if end is not None and end != steps and end > warmup:
        ledger.options["schedule.decay_steps"] = round(end) - warmup
