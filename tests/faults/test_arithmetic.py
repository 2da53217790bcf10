"""Faults of arithmetic that no message tells of: a wrong norm, a resumed run that differs."""

import pytest

from tests.pairs import extended
from tests.runs import losses, start, tiny_config, train


def test_stages_without_zero_clip_by_one_common_norm(finished):
    options = {"optimizer__gradient_clipping": 0.3, "training__steps": 8}
    one, two, free = (
        finished(**{**options, **changed})
        for changed in (
            {},
            {"parallel__pipeline_stages": 2},
            {"optimizer__gradient_clipping": None},
        )
    )
    assert one.losses == two.losses != free.losses
    norms = [row["grad_norm"] for row in one.rows]
    assert norms == [row["grad_norm"] for row in two.rows]
    assert max(norms) > 0.3


RESUMED = {
    "bf16 without ZeRO on two stages": {"precision": "bf16"},
    "dropout": {"model__dropout": 0.1, "model__attention__dropout": 0.1},
}


@pytest.mark.parametrize("fault", ["bf16 without ZeRO on two stages", extended("dropout")])
def test_a_run_that_broke_after_a_save_goes_on_bit_by_bit(
    finished, corpus, tmp_path, monkeypatch, fault
):
    options = {
        **RESUMED[fault],
        "parallel__pipeline_stages": 2,
        "parallel__zero_stage": 0,
        "training__steps": 8,
        "checkpoint__interval": 3,
    }
    whole = finished(**options)
    broken = tiny_config(corpus, tmp_path, **options)
    monkeypatch.setenv("GPTX_FAULT", "kill:at=step:rank=1:step=5")
    assert -9 in start(broken)
    monkeypatch.delenv("GPTX_FAULT")
    rows = train(broken)
    assert losses(rows) == whole.losses
    assert [row["step"] for row in rows] == list(range(1, 9))
