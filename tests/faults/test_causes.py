"""A rank that fails ends the run with its own cause on the screen, and leaves nothing behind."""

import re
from typing import Any

import pytest

from tests.launches import Place

LAYOUTS: dict[str, dict[str, Any]] = {
    "PP 2": {},
    "DP 2": {"parallel__pipeline_stages": 1, "parallel__data_replicas": 2},
}
CAUSES = {
    "error": (1, r"error on rank 1 \(traceback in \S+rank-1\.log\): InjectedError: "),
    # As the kernel ends a process when memory runs out.
    "kill": (128 + 9, r"ended by SIGKILL; the machine may have run out of memory \(logs: "),
}


@pytest.mark.parametrize(
    ("action", "layout", "place"),
    [
        ("error", "DP 2", "evaluation"),
        # The end-to-end tests kill a rank of two stages.
        pytest.param("kill", "DP 2", "step", marks=pytest.mark.extended),
        pytest.param("error", "PP 2", "step", marks=pytest.mark.extended),
    ],
)
def test_one_clear_cause_is_shown_and_not_what_its_peers_met(tmp_path, action, layout, place):
    options = {**LAYOUTS[layout], "training__steps": 4, "evaluation__interval": 2}
    launched = Place(tmp_path, **options)
    done = launched.launch(
        "train.py", GPTX_FAULT=f"{action}:at={place}:rank=1:step>=2:once={tmp_path / 'struck'}"
    )
    screen = done.shown + done.said
    status, cause = CAUSES[action]
    assert done.status == status
    assert re.search(cause, screen), screen
    assert len(re.findall("^error", screen, flags=re.MULTILINE)) == 1
    assert "Traceback" not in screen
    assert "peer" not in screen
    assert launched.left() == []
