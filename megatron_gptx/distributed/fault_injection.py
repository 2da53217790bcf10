"""Faults on demand: what tests aim at a moment of a run that random kills would seldom meet.

Without GPTX_FAULT in the environment nothing here does anything. With it, it holds faults that are
separated by spaces, each an action and conditions joined by colons:

    GPTX_FAULT="kill:at=manifest:rank=1:step>=8"

Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `term` (SIGTERM), `sleep` (for ever), `slow` (a
moment, each time), `error` (an exception), `full` (the error of a full disk); on tensors, `nan` at
`gradient` and `flip` (one bit) at `weights`. The signals take `who=rank` (the default), `who=node`
(the launcher of this node) or `who=launcher` (deepy.py). Conditions: `at=PLACE` (always),
`rank=N`, `step=N`, `step>=N`, and `once=FILE`: only where that file does not exist yet, which
makes it.
"""

import errno
import os
import re
import signal
import time
from pathlib import Path

VARIABLE = "GPTX_FAULT"

_ACTIONS = ("kill", "stop", "term", "sleep", "slow", "error", "full")
_ON_TENSORS = ("nan", "flip")
_SLOW_SECONDS = 0.05
_CONDITION = re.compile(r"(at|who|rank|step|once)(>=|=)(.+)")


class InjectedError(Exception):
    """An error that GPTX_FAULT asked for."""


def fault_point(place: str, *, step: int = 0) -> None:
    """Suffer the faults that the environment aims at this place.

    Args:
        place: name of the place, such as `manifest`.
        step: optimizer steps taken so far.

    Raises:
        ValueError: GPTX_FAULT cannot be read.
        InjectedError, OSError: what the actions `error` and `full` do.
    """
    for fault in os.environ.get(VARIABLE, "").split():
        action, conditions = _parse(fault)
        if action in _ACTIONS and _meets(conditions, place, step):
            _suffer(action, place, who=conditions.get("who", ("=", "rank"))[1])


def fault_strikes(action: str, place: str, *, step: int) -> bool:
    """Return whether the environment aims an action that the caller does at this place."""
    faults = (_parse(fault) for fault in os.environ.get(VARIABLE, "").split())
    return any(asked == action and _meets(conditions, place, step) for asked, conditions in faults)


def _parse(fault: str) -> tuple[str, dict[str, tuple[str, str]]]:
    action, *parts = fault.split(":")
    matches = [_CONDITION.fullmatch(part) for part in parts]
    conditions = {match[1]: (match[2], match[3]) for match in matches if match}
    if (
        action not in _ACTIONS + _ON_TENSORS
        or len(conditions) != len(parts)
        or "at" not in conditions
    ):
        raise ValueError(f"{VARIABLE}: {fault!r} is no fault, such as kill:at=manifest:rank=1")
    return action, conditions


def _meets(conditions: dict[str, tuple[str, str]], place: str, step: int) -> bool:
    now = {"at": place, "rank": os.environ.get("RANK", "0"), "step": str(step)}
    for name, (comparison, wanted) in conditions.items():
        if name in now and comparison == "=" and now[name] != wanted:
            return False
        if comparison == ">=" and int(now[name]) < int(wanted):
            return False
    return "once" not in conditions or _first_time(Path(conditions["once"][1]))


def _first_time(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _suffer(action: str, place: str, who: str) -> None:
    if action == "sleep":
        time.sleep(1e9)
    if action == "slow":
        time.sleep(_SLOW_SECONDS)
        return
    if action == "error":
        raise InjectedError(f"{VARIABLE} asked for an error at {place!r}")
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
    signum = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[action]
    os.kill(_process(who), signum)
    if who != "rank" and action != "term":
        time.sleep(1e9)  # until this rank goes the way of its launcher


def _process(who: str) -> int:
    if who == "rank":
        return os.getpid()
    node = os.getppid()
    if who == "node":
        return node
    return int(Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[1])
