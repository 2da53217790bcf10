"""The rank that makes the others wait is named, once; equal ranks are not."""

import pytest

from tests.runs import start, tiny_config

LAYOUTS = {
    "DP 2": {"parallel__data_replicas": 2},
    "PP 2": {"parallel__pipeline_stages": 2},
    "DP 2, ZeRO 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 2},
}


@pytest.mark.parametrize(
    ("layout", "phase"),
    [("DP 2", "data"), ("DP 2", "forward"), ("PP 2", "data"), ("DP 2, ZeRO 2", "forward")],
)
def test_a_slow_rank_is_named_with_what_it_is_slow_in(corpus, tmp_path, monkeypatch, layout, phase):
    monkeypatch.setenv("GPTX_FAULT", f"slow:at={phase}:rank=1")
    options = {**LAYOUTS[layout], "training__steps": 100, "training__global_batch_size": 4}
    screen = tmp_path / "screen"
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0, 0]
    # A rank that shares its core may be slow in something else as well.
    assert screen.read_text().count(f"slowest: rank 1, {phase} ") == 1
    assert "times the median over 50 steps" in screen.read_text()


def test_ranks_that_are_all_slow_alike_are_not_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTX_FAULT", "slow:at=data slow:at=forward")
    options = {**LAYOUTS["DP 2"], "training__steps": 50, "training__global_batch_size": 4}
    screen = tmp_path / "screen"
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0, 0]
    assert "slowest" not in screen.read_text()
