"""Which steps are bad, and what follows from how many."""

import json
import math

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.training.bad_steps import Guard
from megatron_gptx.training.engine import StepResult
from tests.runs import tiny_config

GOOD = StepResult(loss=2.0, grad_norm=1.0, applied=True)
NAN = StepResult(loss=math.nan, grad_norm=math.nan, applied=False)
SKIPPED = GOOD._replace(grad_norm=math.inf, applied=False)
HIGH = GOOD._replace(loss=6.1)


@pytest.fixture
def guard(tmp_path):
    """Return what makes a guard with some options."""
    return lambda **options: Guard(tiny_config(tmp_path, tmp_path, **options))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (GOOD, None),
        (HIGH, None),
        (NAN, "loss nan, not applied"),
        (GOOD._replace(loss=math.inf), "loss inf"),
        (SKIPPED, "gradients not finite, not applied"),
    ],
)
def test_a_step_is_bad_whose_loss_or_gradients_are_not_finite(guard, result, reason):
    assert guard().judge(result) == reason


def test_fp16_looks_for_its_loss_scale_by_steps_that_are_not_applied(guard):
    guard = guard(precision="fp16")
    assert guard.judge(SKIPPED) is None
    assert guard.judge(NAN) is not None


def test_a_spike_is_measured_by_the_median_of_the_good_steps(guard):
    guard = guard(guard__spike_factor=3.0)
    assert [guard.judge(HIGH) for _ in range(19)] == [None] * 19
    guard.losses.clear()
    for _ in range(20):
        guard.judge(GOOD)
    assert guard.judge(GOOD._replace(loss=5.9)) is None
    for _ in range(50):
        assert guard.judge(HIGH) == "loss 6.1000 is above 3 times the median 2.0000, applied"


def test_a_resumed_run_judges_as_one_that_was_never_stopped(guard):
    first, second = guard(guard__spike_factor=3.0), guard(guard__spike_factor=3.0)
    for result in [*[GOOD] * 20, HIGH, NAN]:
        first.judge(result)
    first.rewind()
    first.judge(NAN)
    second.restore(json.loads(json.dumps(first.state())))
    assert (second.bad_steps, second.in_a_row, second.rewinds) == (3, 1, 1)
    assert second.judge(HIGH) == first.judge(HIGH) is not None


def test_only_bad_steps_in_a_row_send_a_run_back(guard):
    guard = guard(guard__max_bad_steps=2)
    seen = []
    for result in (NAN, GOOD, NAN, SKIPPED):
        guard.judge(result)
        seen.append(guard.must_rewind)
    assert seen == [False, False, False, True]
    assert guard.bad_steps == 3


def test_a_run_goes_back_so_often_and_no_more(guard):
    guard = guard(guard__max_bad_steps=1, guard__max_rewinds=2)
    for _ in range(2):
        guard.judge(NAN)
        guard.rewind()
        assert not guard.must_rewind
    guard.judge(NAN)
    with pytest.raises(UserError, match="after 2 returns to the newest checkpoint"):
        guard.rewind()
