"""A stopped run continues as if it had not been stopped."""

import json

import pytest

from tests.pairs import cover, extended
from tests.runs import start, tiny_config, train, without_speed

# Everything that draws or recomputes at once; ZeRO 2 and 3 know one stage only.
RANDOM = {
    "model__dropout": 0.1,
    "model__attention__dropout": 0.1,
    "training__checkpoint_activations": 2,
}
PLAIN = {
    "one stage": {},
    "two stages": {"parallel__pipeline_stages": 2},
    "two stages, tied": {"parallel__pipeline_stages": 2, "model__tied_head": True},
}
# ZeRO stage, pipeline stages, replicas, precision.
MATRIX = [
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
]


def name_of(choice: tuple[int, int, int, str]) -> str:
    zero_stage, stages, replicas, precision = choice
    return f"PP {stages} x DP {replicas}, ZeRO {zero_stage}, {precision}, dropout, blend"


LAYOUTS = PLAIN | {
    name_of(choice): {
        **RANDOM,
        "data__train": "blend",
        "parallel__zero_stage": choice[0],
        "parallel__pipeline_stages": choice[1],
        "parallel__data_replicas": choice[2],
        "precision": choice[3],
    }
    for choice in MATRIX
}
OFTEN = [*PLAIN, *map(name_of, cover(MATRIX))]


@pytest.mark.parametrize("layout", [each if each in OFTEN else extended(each) for each in LAYOUTS])
def test_the_steps_after_a_save_equal_the_uninterrupted_run_bit_by_bit(
    finished, corpus, tmp_path, layout
):
    options = {
        **LAYOUTS[layout],
        "optimizer__gradient_clipping": 0.5,
        "training__steps": 6,
        "checkpoint__interval": 3,
    }
    if "data__train" in options:
        options["data__train"] = {str(corpus / "train"): 3.0, str(corpus / "valid"): 1.0}
    whole = finished(**options)
    whole.copy(tmp_path)
    # As if the run had been killed before its next save: the newest checkpoint is of step 3, and
    # the metrics know of a future that will happen again.
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({**row, "loss": 0.0} if row["step"] > 3 else row) + "\n"
            for row in whole.rows
        )
    )
    resumed = train(tiny_config(corpus, tmp_path, **options))
    assert [row["step"] for row in resumed] == list(range(1, 7))
    assert without_speed(resumed) == without_speed(whole.rows)


def test_a_run_that_has_ended_can_be_prolonged(finished, corpus, tmp_path):
    options = {"parallel__pipeline_stages": 2, "schedule__decay_steps": 7}
    whole = finished(**options, training__steps=8)
    finished(**options, training__steps=4).copy(tmp_path)
    resumed = train(tiny_config(corpus, tmp_path, **options, training__steps=8))
    assert without_speed(resumed)[4:] == without_speed(whole.rows)[4:]


def test_a_finished_run_says_so_and_changes_nothing(finished, corpus, tmp_path):
    before = finished(training__steps=2)
    before.copy(tmp_path)
    assert train(tiny_config(corpus, tmp_path, training__steps=2)) == before.rows
    files = [folder / "metrics.jsonl" for folder in (before.folder, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_options_that_changed_since_the_save_are_named(finished, corpus, tmp_path):
    finished(training__steps=2).copy(tmp_path)
    screen = tmp_path / "screen"
    changed = tiny_config(corpus, tmp_path, training__steps=3, optimizer__lr=0.02)
    assert start(changed, screen=screen) == [0]
    assert "changed since step-00000002: optimizer.lr 0.01 -> 0.02" in screen.read_text()


def test_metrics_hold_one_whole_object_per_step(finished):
    rows = finished(training__steps=3).rows
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["tokens"] for row in rows] == [256, 512, 768]
    measured = {"loss", "lr", "grad_norm", "tokens_per_second", "data_seconds", "epochs"}
    assert measured <= rows[0].keys()
    assert rows[-1]["valid_loss"] > 0
