"""Faults of arithmetic that no message tells of: a wrong norm, a resumed run that differs."""

import json

import pytest

from tests.runs import losses, start, tiny_config, train


def test_stages_without_zero_clip_by_one_common_norm(corpus, tmp_path):
    options = {"optimizer__gradient_clipping": 0.3, "training__steps": 8}
    one, two, free = (
        train(tiny_config(corpus, tmp_path / name, **{**options, **changed}))
        for name, changed in (
            ("one", {}),
            ("two", {"parallel__pipeline_stages": 2}),
            ("free", {"optimizer__gradient_clipping": None}),
        )
    )
    assert losses(one) == losses(two) != losses(free)
    assert [row["grad_norm"] for row in one] == [row["grad_norm"] for row in two]
    assert max(row["grad_norm"] for row in one) > 0.3


RESUMED = {
    "bf16 without ZeRO on two stages": {"precision": "bf16"},
    "dropout": {"model__dropout": 0.1, "model__attention__dropout": 0.1},
}


@pytest.mark.parametrize("fault", RESUMED)
def test_a_run_that_broke_after_a_save_goes_on_bit_by_bit(corpus, tmp_path, monkeypatch, fault):
    options = {
        **RESUMED[fault],
        "parallel__pipeline_stages": 2,
        "parallel__zero_stage": 0,
        "training__steps": 8,
        "checkpoint__interval": 3,
    }
    whole = train(tiny_config(corpus, tmp_path / "whole", **options))
    broken = tiny_config(corpus, tmp_path / "broken", **options)
    monkeypatch.setenv("GPTX_FAULT", "kill:at=step:rank=1:step=5")
    assert -9 in start(broken)
    monkeypatch.delenv("GPTX_FAULT")
    rows = train(broken)
    assert losses(rows) == losses(whole)
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
