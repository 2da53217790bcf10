"""Learning rates."""

import itertools

import pytest

from megatron_gptx.config.training import ScheduleConfig
from megatron_gptx.training.schedule import learning_rate, rate_change
from tests.runs import tiny_config


def rates(steps: int = 100, **options: object) -> list[float]:
    schedule = ScheduleConfig.model_validate(options)
    return [
        learning_rate(step, peak=1.0, steps=steps, schedule=schedule) for step in range(steps + 5)
    ]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd", "one_cycle"])
def test_warm_up_rises_to_the_peak_and_never_above_it(name):
    values = rates(name=name, warmup_steps=10, min_lr_ratio=0.1)
    assert all(a < b for a, b in itertools.pairwise(values[:11]))
    assert values[0] > 0
    assert values[10] == pytest.approx(1.0)
    assert max(values) <= 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "one_cycle"])
def test_decay_ends_at_the_floor_and_stays_there(name):
    values = rates(name=name, warmup_steps=10, min_lr_ratio=0.1)
    assert values[100:] == pytest.approx([0.1] * 5)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_cosine_and_linear_are_half_way_down_in_the_middle():
    for name in ("cosine", "linear"):
        assert rates(name=name, min_lr_ratio=0.0)[50] == pytest.approx(0.5)


def test_constant_stays_at_the_peak():
    assert set(rates(name="constant", warmup_steps=3)[3:]) == {1.0}


def test_wsd_is_stable_until_a_tenth_of_the_run_is_left():
    values = rates(name="wsd", warmup_steps=10, min_lr_ratio=0.0)
    assert set(values[10:91]) == {1.0}
    assert values[95] == pytest.approx(0.5)


def test_decay_steps_shorten_the_decay():
    assert rates(name="linear", decay_steps=20, min_lr_ratio=0.25)[20:] == pytest.approx(
        [0.25] * 85
    )


def test_a_rate_that_jumps_where_a_run_goes_on_is_named(tmp_path):
    saved = tiny_config(tmp_path, tmp_path, training__steps=20).model_dump()
    same = tiny_config(tmp_path, tmp_path, training__steps=20, precision="bf16")
    assert rate_change(saved, same, step=10) is None
    longer = tiny_config(tmp_path, tmp_path, training__steps=40)
    assert rate_change(saved, longer, step=10) == (
        "the learning rate of step 11 is 0.00905; with the options of the checkpoint it would be "
        "0.00628"
    )
    assert rate_change({**saved, "schedule": {"name": "of old"}}, longer, step=10) is None
    assert rate_change(saved, longer, step=40) is None
