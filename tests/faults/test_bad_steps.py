"""Gradients that are not finite change nothing, in any mode; too many of them send a run back."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_gptx.checkpoint.names import checkpoints, step_of
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.exit_status import STOPPED
from megatron_gptx.launcher.command_line import encode
from tests.checkpoints import weights
from tests.pairs import extended
from tests.runs import losses, start, start_ranks, tiny_config, train, train_rank


@pytest.fixture
def fault(monkeypatch):
    """Return what sets GPTX_FAULT for the ranks to come."""
    return lambda text: monkeypatch.setenv("GPTX_FAULT", text)


def train_behind(packed: str, skipped: int) -> None:
    """Train one rank from its checkpoint on, but behind some more samples."""
    from megatron_gptx.training import pretrain

    load = pretrain.resume

    def resume(*arguments, **options):
        saved = load(*arguments, **options)
        saved.manifest["state"]["samples"] += skipped
        return saved

    pretrain.resume = resume
    train_rank(packed)


def rows_behind(config: Config, *, skipped: int, ranks: int) -> list[dict[str, float]]:
    """Resume a run behind some more samples, and return its metrics."""
    assert start_ranks(train_behind, ranks, encode(config), skipped) == [0] * ranks
    lines = (Path(config.output.run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def num_ranks(mode: str) -> int:
    return 2 if "PP 2" in mode or "DP 2" in mode else 1


MODES = {
    "ZeRO 0": {},
    "ZeRO 0, PP 2": {"parallel__pipeline_stages": 2},
    "ZeRO 0, DP 2": {"parallel__data_replicas": 2},
    "ZeRO 1, DP 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 1},
    "ZeRO 2, DP 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 2},
    "ZeRO 3, DP 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 3},
    "bf16": {"precision": "bf16"},
    "bf16, PP 2": {"precision": "bf16", "parallel__pipeline_stages": 2},
    "bf16, ZeRO 2, DP 2": {
        "precision": "bf16",
        "parallel__data_replicas": 2,
        "parallel__zero_stage": 2,
    },
    "bf16, ZeRO 3, DP 2": {
        "precision": "bf16",
        "parallel__data_replicas": 2,
        "parallel__zero_stage": 3,
    },
}


# Every ZeRO stage, precision and arrangement of ranks.
OFTEN = ["ZeRO 0, PP 2", "ZeRO 1, DP 2", "ZeRO 2, DP 2", "bf16, PP 2", "bf16, ZeRO 3, DP 2"]


@pytest.mark.parametrize("mode", [mode if mode in OFTEN else extended(mode) for mode in MODES])
def test_a_nan_gradient_on_one_rank_is_applied_nowhere(corpus, tmp_path, fault, mode):
    options = {**MODES[mode], "training__steps": 6, "optimizer__gradient_clipping": 0.5}
    fault(f"nan:at=gradient:step=4:rank={num_ranks(mode) - 1}")
    rows = train(tiny_config(corpus, tmp_path, **options))
    assert [row["bad_steps"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert [row["grad_norm"] is None for row in rows].index(True) == 4
    assert all(row["loss"] < 6 for row in rows)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, step=6).values())
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "step 5: gradients not finite, not applied; samples 32 to 39 (" in log


@pytest.mark.parametrize("mode", ["ZeRO 3, DP 2", "bf16, PP 2", extended("ZeRO 1, DP 2")])
def test_a_skipped_step_leaves_a_run_as_if_its_samples_had_not_been_there(
    finished, corpus, tmp_path, fault, mode
):
    # The rate is constant and nothing is dropped: the number of a step makes no difference.
    options = {**MODES[mode], "schedule__name": "constant", "schedule__warmup_steps": 0}
    fault("nan:at=gradient:step=3:rank=1")
    skipping = losses(train(tiny_config(corpus, tmp_path / "a", **options, training__steps=6)))
    fault("")
    finished(**options, training__steps=3).copy(tmp_path / "b")
    longer = tiny_config(corpus, tmp_path / "b", **options, training__steps=5)
    never = losses(rows_behind(longer, skipped=8, ranks=num_ranks(mode)))
    assert skipping[:3] + skipping[4:] == never


@pytest.mark.parametrize("mode", ["ZeRO 3, DP 2", "bf16, PP 2", extended("ZeRO 1, DP 2")])
def test_bad_steps_in_a_row_send_a_run_back_behind_their_samples(
    finished, corpus, tmp_path, fault, mode
):
    options = {
        **MODES[mode],
        "checkpoint__interval": 3,
        "checkpoint__keep_last": None,
        "guard__max_bad_steps": 2,
        "model__dropout": 0.1,
        "schedule__decay_steps": 7,
    }
    # Steps 4 and 5, each once: at their second time they go well.
    once = [f"nan:at=gradient:rank=1:step={n}:once={tmp_path / str(n)}" for n in (3, 4)]
    fault(" ".join(once))
    drawn = {"logging__tensorboard": True, "training__steps": 7}
    rows = train(tiny_config(corpus, tmp_path / "a", **options, **drawn))
    assert [row["step"] for row in rows] == list(range(1, 8))
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(1, 8))
    assert [row["bad_steps"] for row in rows] == [0] * 3 + [2] * 4
    log = (tmp_path / "a" / "logs" / "rank-0.log").read_text()
    assert "step 5: back to step 3, on behind sample 39 (return 1 of at most 3)" in log
    fault("")
    finished(**options, training__steps=3).copy(tmp_path / "b")
    longer = tiny_config(corpus, tmp_path / "b", **options, training__steps=7)
    assert losses(rows) == losses(rows_behind(longer, skipped=16, ranks=num_ranks(mode)))
    after = weights(tmp_path / "a", step=7)
    expected = weights(tmp_path / "b", step=7)
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in after)


def test_a_run_that_goes_wrong_again_and_again_ends_with_one_message(corpus, tmp_path, fault):
    options = {"guard__max_bad_steps": 2, "guard__max_rewinds": 1, "checkpoint__interval": 2}
    fault("nan:at=gradient:step>=3")
    screen = tmp_path / "screen"
    config = tiny_config(corpus, tmp_path, **options, checkpoint__start="fresh")
    assert start(config, screen=screen) == [2]
    said = screen.read_text()
    assert said.count("back to step 2, on behind sample 39 (return 1 of at most 1)") == 1
    assert said.count("2 steps in a row were bad, after 1 returns to the newest checkpoint") == 1
    assert "Traceback" not in said


def test_a_run_without_a_checkpoint_to_go_back_to_says_so(corpus, tmp_path, fault):
    fault("nan:at=gradient:step>=3")
    screen = tmp_path / "screen"
    config = tiny_config(corpus, tmp_path, guard__max_bad_steps=2)
    assert start(config, screen=screen) == [2]
    assert "there is no checkpoint to go back to" in screen.read_text()


def saved_steps(run_dir: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(run_dir / "checkpoints")]


def test_nothing_is_saved_amid_bad_steps(corpus, tmp_path, fault):
    fault("nan:at=gradient:step=4 nan:at=gradient:step=3")
    options = {"checkpoint__interval": 4, "schedule__decay_steps": 8}
    train(tiny_config(corpus, tmp_path, training__steps=7, **options))
    assert saved_steps(tmp_path) == [6, 7]
    # They are counted over the end of a launch.
    rows = train(tiny_config(corpus, tmp_path, training__steps=8, **options))
    assert [row["bad_steps"] for row in rows] == [0, 0, 0, 1, 2, 2, 2, 2]


def test_a_save_that_a_bad_step_has_put_off_is_made_after_a_stop(corpus, tmp_path, fault):
    options = {"checkpoint__interval": 4, "checkpoint__keep_last": None}
    config = tiny_config(corpus, tmp_path, training__steps=7, **options)
    fault(" ".join(["nan:at=gradient:step=3 term:at=step:step=3", *["slow:at=step:step=3"] * 10]))
    assert start(config) == [STOPPED]
    assert saved_steps(tmp_path) == [4]
    fault("")
    train(config)
    assert saved_steps(tmp_path) == [4, 5, 7]


def test_a_return_makes_no_save_that_was_due_before_it(corpus, tmp_path, fault):
    options = {"checkpoint__interval": 4, "checkpoint__keep_steps": [2], "guard__max_bad_steps": 2}
    fault(" ".join(f"nan:at=gradient:step={n}:once={tmp_path / str(n)}" for n in (3, 4)))
    rows = train(tiny_config(corpus, tmp_path, training__steps=7, **options))
    assert [row["bad_steps"] for row in rows] == [0] * 2 + [2] * 5
    assert saved_steps(tmp_path) == [2, 4, 7]
