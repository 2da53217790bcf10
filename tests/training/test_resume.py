"""A stopped run continues as if it had not been stopped."""

import json

import pytest

from tests.runs import start, tiny_config, train, without_speed

# Everything that draws or recomputes at once; ZeRO 2 and 3 know one stage only.
RANDOM = {
    "model__dropout": 0.1,
    "model__attention__dropout": 0.1,
    "training__checkpoint_activations": 2,
}
LAYOUTS = {
    "one stage": {},
    "two stages": {"parallel__pipeline_stages": 2},
    "two stages, tied": {"parallel__pipeline_stages": 2, "model__tied_head": True},
    **{
        f"PP {stages} x DP {replicas}, ZeRO {zero_stage}, {precision}, dropout, blend": {
            **RANDOM,
            "data__train": "blend",
            "parallel__pipeline_stages": stages,
            "parallel__data_replicas": replicas,
            "parallel__zero_stage": zero_stage,
            "precision": precision,
        }
        for zero_stage, stages, replicas, precision in (
            (0, 1, 1, "fp32"),
            (0, 2, 1, "bf16"),
            (0, 1, 2, "fp32"),
            (0, 2, 2, "fp32"),
            (1, 1, 1, "bf16"),
            (1, 2, 1, "fp32"),
            (1, 1, 2, "fp32"),
            (1, 2, 2, "bf16"),
            (2, 1, 1, "fp32"),
            (2, 1, 2, "bf16"),
            (3, 1, 1, "bf16"),
            (3, 1, 2, "fp32"),
        )
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_steps_after_a_save_equal_the_uninterrupted_run_bit_by_bit(corpus, tmp_path, layout):
    options = {
        **LAYOUTS[layout],
        "optimizer__gradient_clipping": 0.5,
        "training__steps": 12,
        "checkpoint__interval": 6,
    }
    if "data__train" in options:
        options["data__train"] = {str(corpus / "train"): 3.0, str(corpus / "valid"): 1.0}
    config = tiny_config(corpus, tmp_path, **options)
    whole = train(config)
    # As if the run had been killed before its next save: the newest checkpoint is of step 6, and
    # the metrics know of a future that will happen again.
    (tmp_path / "checkpoints" / "latest").write_text("step-00000006\n")
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({**row, "loss": 0.0} if row["step"] > 6 else row) + "\n" for row in whole
        )
    )
    resumed = train(config)
    assert [row["step"] for row in resumed] == list(range(1, 13))
    assert without_speed(resumed) == without_speed(whole)


def test_a_run_that_ended_at_step_10_can_be_prolonged(corpus, tmp_path):
    options = {"parallel__pipeline_stages": 2, "schedule__decay_steps": 18}
    whole = train(tiny_config(corpus, tmp_path / "whole", **options))
    train(tiny_config(corpus, tmp_path / "stopped", **options, training__steps=10))
    resumed = train(tiny_config(corpus, tmp_path / "stopped", **options))
    assert without_speed(resumed)[10:] == without_speed(whole)[10:]


def test_a_finished_run_says_so_and_changes_nothing(corpus, tmp_path):
    config = tiny_config(corpus, tmp_path, training__steps=2)
    rows = train(config)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(config) == rows
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_options_that_changed_since_the_save_are_named(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path, training__steps=2))
    screen = tmp_path / "screen"
    changed = tiny_config(corpus, tmp_path, training__steps=3, optimizer__lr=0.02)
    assert start(changed, screen=screen) == [0]
    assert "changed since step-00000002: optimizer.lr 0.01 -> 0.02" in screen.read_text()


def test_metrics_hold_one_whole_object_per_step(corpus, tmp_path):
    rows = train(tiny_config(corpus, tmp_path, training__steps=3))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["tokens"] for row in rows] == [256, 512, 768]
    measured = {"loss", "lr", "grad_norm", "tokens_per_second", "data_seconds", "epochs"}
    assert measured <= rows[0].keys()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["valid_loss"] > 0
