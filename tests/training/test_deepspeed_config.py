"""What DeepSpeed is told."""

from pathlib import Path

import pytest

from megatron_gptx.training.deepspeed_config import deepspeed_config, zero_stage_note
from tests.runs import tiny_config, train


def settings(**options: object) -> dict:
    return deepspeed_config(tiny_config(Path("corpus"), Path("run"), **options))


def test_batch_sizes_are_consistent():
    told = settings(parallel__data_replicas=2)
    assert told["train_batch_size"] == 8
    assert told["train_micro_batch_size_per_gpu"] == 2
    assert told["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_without_zero_runs_as_stage_1_and_says_why(precision):
    config = tiny_config(Path("corpus"), Path("run"), precision=precision, parallel__zero_stage=0)
    assert deepspeed_config(config)["zero_optimization"]["stage"] == 1
    assert precision in zero_stage_note(config)


def test_bf16_accumulates_gradients_in_fp32():
    assert settings(precision="bf16")["data_types"] == {"grad_accum_dtype": "fp32"}


def test_deepspeed_never_clips_without_zero():
    assert (
        settings(parallel__zero_stage=0, optimizer__gradient_clipping=1.0)["gradient_clipping"] == 0
    )
    assert (
        settings(parallel__zero_stage=1, optimizer__gradient_clipping=1.0)["gradient_clipping"]
        == 1.0
    )


def test_the_raw_section_is_merged_in():
    told = settings(deepspeed={"zero_optimization": {"reduce_bucket_size": 5}, "prescale": True})
    assert told["zero_optimization"]["stage"] == 0
    assert told["zero_optimization"]["reduce_bucket_size"] == 5
    assert told["prescale"] is True


PROFILER = {"flops_profiler": {"enabled": True, "profile_step": 1}}


@pytest.mark.parametrize(
    ("zero_stage", "measuring"),
    [
        (0, PROFILER),
        (2, PROFILER),
        (0, {"wall_clock_breakdown": True}),
        (2, {"wall_clock_breakdown": True, "memory_breakdown": True}),
    ],
)
def test_what_deepspeed_measures_by_itself_ends_no_run(corpus, tmp_path, zero_stage, measuring):
    options = {"parallel__zero_stage": zero_stage, "training__steps": 11, "deepspeed": measuring}
    assert len(train(tiny_config(corpus, tmp_path, **options))) == 11


def test_a_chosen_number_of_steps_between_reports_is_kept():
    assert settings(deepspeed=PROFILER | {"steps_per_print": 3})["steps_per_print"] == 3
    assert settings()["steps_per_print"] is None
