"""A rank that fails ends the run with its own cause on the screen, and leaves nothing behind."""

import re

import pytest

from tests.faults.launched import launch
from tests.runs import tiny_config, write_corpus

LAYOUTS = {"PP 2": {"parallel__pipeline_stages": 2}, "DP 2": {"parallel__data_replicas": 2}}
CAUSES = {
    "error": (1, r"error on rank 1 \(traceback in \S+rank-1\.log\): InjectedError: "),
    # As the kernel ends a process when memory runs out.
    "kill": (128 + 9, r"ended by SIGKILL; the machine may have run out of memory \(logs: "),
}


@pytest.mark.parametrize(
    ("action", "layout", "place"),
    [("error", "PP 2", "step"), ("error", "DP 2", "evaluation"), ("kill", "DP 2", "step")],
)
def test_one_clear_cause_is_shown_and_not_what_its_peers_met(tmp_path, action, layout, place):
    write_corpus(tmp_path)
    config = tiny_config(
        tmp_path, tmp_path / "run", **LAYOUTS[layout], training__steps=4, evaluation__interval=2
    )
    outcome = launch(config, fault=f"{action}:at={place}:rank=1:step>=2")
    status, cause = CAUSES[action]
    assert outcome.status == status
    assert re.search(cause, outcome.screen), outcome.screen
    assert len(re.findall("^error", outcome.screen, flags=re.MULTILINE)) == 1
    assert "Traceback" not in outcome.screen
    assert "peer" not in outcome.screen
    assert outcome.left == []
