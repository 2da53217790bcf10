"""A rank that stops moving ends the run in time, with one message that names it."""

import re
import sys
import time
from typing import Any

import pytest

from tests.launches import Place
from tests.runs import tiny_config, train

TIMEOUT_SECONDS = 8
# The launcher of a node gives every rank 30 seconds after SIGTERM, which a stopped one needs.
BOUND_SECONDS = TIMEOUT_SECONDS + 35

LAYOUTS: dict[str, dict[str, Any]] = {
    "PP 2": {},
    "DP 2": {"parallel__pipeline_stages": 1, "parallel__data_replicas": 2},
}
PLACES = ("step", "save", "load", "evaluation")
# Each fault and each layout once.
OFTEN = (("stop", "PP 2", "save"), ("sleep", "DP 2", "step"))
ALL = (
    *(
        (("stop", "sleep")[(layout == "DP 2") ^ (index % 2)], layout, place)
        for layout in LAYOUTS
        for index, place in enumerate(PLACES)
    ),
    ("sleep", "PP 2", "load"),
    # Of a save beside training; it is found when the next one waits for it.
    ("sleep", "PP 2", "write"),
    ("sleep", "DP 2", "write"),
)


@pytest.mark.parametrize(
    ("action", "layout", "place"),
    [
        *OFTEN,
        *(pytest.param(*case, marks=pytest.mark.extended) for case in ALL if case not in OFTEN),
    ],
)
def test_a_rank_that_hangs_ends_the_run_in_time_and_is_named(tmp_path, action, layout, place):
    options = {
        **LAYOUTS[layout],
        "training__steps": 6,
        "checkpoint__interval": 2,
        "evaluation__interval": 2,
        "launch__timeout_seconds": TIMEOUT_SECONDS,
        "checkpoint__asynchronous": place == "write",
    }
    launched, struck = Place(tmp_path, **options), tmp_path / "struck"
    if place == "load":
        train(tiny_config(tmp_path, tmp_path / "run", **{**options, "training__steps": 2}))
    done = launched.launch("train.py", GPTX_FAULT=f"{action}:at={place}:rank=1:once={struck}")
    seconds, screen = time.time() - struck.stat().st_mtime, done.shown + done.said
    report(f"{action} in {place}, {layout}", seconds, screen)
    assert done.status == 76
    assert TIMEOUT_SECONDS <= seconds <= BOUND_SECONDS
    assert screen.count("error") == 1
    slept = r"in fault_injection\.py:\d+ _suffer"
    hung = {"stop": r"silent \(last in phase", "sleep": slept}[action]
    message = f"no progress for .* s: rank 1 is {hung}.*; rank 0 is waiting in [a-z_]+ "
    assert re.search(message, screen), screen
    if action == "sleep":  # a stopped rank may not have told yet what it began
        assert f"(phase {'save' if place == 'write' else place}, step " in screen
    # Whichever rank was first; its end is what the other one sees.
    logs = [path.read_text() for path in (tmp_path / "run" / "logs").glob("rank-*.log")]
    assert any("most recent call first" in log for log in logs)
    assert launched.left() == []


def report(case: str, seconds: float, screen: str) -> None:
    """Print a line for people who ask for it with -s."""
    said = " ".join(line for line in screen.splitlines() if "error" in line)
    sys.stdout.write(f"\n{case}: {seconds:.1f} s: {said}\n")
