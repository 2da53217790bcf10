"""The rank that makes the others wait is named, once; equal ranks are not."""

import pytest

from tests.pairs import extended
from tests.runs import start, tiny_config

FEW = {"model__num_layers": 1, "training__global_batch_size": 4}
LAYOUTS = {
    "DP 2": {"parallel__data_replicas": 2},
    "PP 2": {"parallel__pipeline_stages": 2},
    "DP 2, ZeRO 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 2},
}


@pytest.mark.parametrize(
    ("layout", "phase", "steps"),
    [
        ("DP 2", "data", 100),
        ("PP 2", "data", 50),
        ("DP 2, ZeRO 2", "forward", 50),
        extended("DP 2", "forward", 50),
    ],
)
def test_a_slow_rank_is_named_once_with_what_it_is_slow_in(
    corpus, tmp_path, monkeypatch, layout, phase, steps
):
    monkeypatch.setenv("GPTX_FAULT", f"slow:at={phase}:rank=1")
    options = {**LAYOUTS[layout], **FEW, "training__steps": steps}
    screen = tmp_path / "screen"
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0, 0]
    # A rank that shares its core may be slow in something else as well.
    assert screen.read_text().count(f"slowest: rank 1, {phase} ") == 1
    assert "times the median over 50 steps" in screen.read_text()


def test_ranks_that_are_all_slow_alike_are_not_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTX_FAULT", "slow:at=data slow:at=forward")
    options = {**LAYOUTS["DP 2"], **FEW, "training__steps": 50}
    screen = tmp_path / "screen"
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0, 0]
    assert "slowest" not in screen.read_text()
