"""Whether what a manifest says can be used: it comes from a file that anybody may have written."""

import math
from typing import Any

COUNTERS = {"step", "samples", "tokens"}


def is_manifest(value: Any) -> bool:
    """Return whether a value from a file has the shape of a manifest, its files' names apart."""
    parts = ("state", "optimizer", "layout", "config", "files")
    if not isinstance(value, dict) or any(not isinstance(value.get(p), dict) for p in parts):
        return False
    state, optimizer, config, files = (value[p] for p in parts if p != "layout")
    scale = optimizer.get("loss_scale") or {}
    guard = value.get("guard")
    return (
        state.keys() == COUNTERS
        and all(_is_count(count) for count in (*state.values(), optimizer.get("steps")))
        and isinstance(scale, dict)
        and all(isinstance(s, int | float) and math.isfinite(s) for s in scale.values())
        and isinstance(guard, dict)
        and all(_is_count(guard.get(name, 0)) for name in ("bad_steps", "in_a_row", "rewinds"))
        and (guard.get("return_to") is None or _is_count(guard["return_to"]))
        and isinstance(guard.get("save_is_due", False), bool)
        and isinstance(losses := guard.get("losses", []), list)
        and all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
        and _is_best(value.get("best"))
        and isinstance(value.get("data", {}), dict | None)
        and isinstance(config.get("model"), dict)
        and all(
            isinstance(entry, dict)
            and _is_count(entry.get("bytes"))
            and isinstance(entry.get("sha256"), str)
            for entry in files.values()
        )
    )


def _is_best(value: Any) -> bool:
    """Return whether this names the best checkpoint, if any, by its step and validation loss."""
    if value is None:
        return True
    loss = value.get("valid_loss") if isinstance(value, dict) else None
    return isinstance(loss, float) and math.isfinite(loss) and _is_count(value.get("step"))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def is_shallow(value: Any, levels: int) -> bool:
    """Return whether no value lies more than so many levels deep: what follows recurses."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(is_shallow(inner, levels - 1) for inner in value)
