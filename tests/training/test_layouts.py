"""Any layout gives the same loss."""

from itertools import product

import pytest

from tests.pairs import extended, pairwise
from tests.runs import tiny_config, train

# Enough that every part of the model has learned something: a fresh gate of ReZero is 0.
STEPS = 8
# One float32 rounding step, relative. Sums in another order differ by a few of these;
# training multiplies them.
EPSILON = 2.0**-23
ROUNDING = 64 * EPSILON
# No bound on rounding covers a selection: where two keys nearly tie for the last place, the last
# digit of a score decides between two different values. So runs that differ by rounding are
# compared over many steps with every key selected, and with top-k step by step from one state.
ALL_KEYS = {"model__attention__top_k": 32}


@pytest.fixture(scope="module")
def run(finished):
    """Return what trains with options and returns the losses."""
    return lambda **options: finished(**{"training__steps": STEPS, **options}).losses


@pytest.mark.parametrize(
    ("residual_scores", "stages", "checkpoint_group"),
    pairwise(product([True, False], [1, 2, 3, 4], [0, 2])),
)
def test_losses_are_bit_identical_for_every_number_of_stages(
    run, residual_scores, stages, checkpoint_group
):
    options = {"model__attention__residual_scores": residual_scores}
    split = run(
        **options,
        parallel__pipeline_stages=stages,
        training__checkpoint_activations=checkpoint_group,
    )
    assert split == run(**options)
    assert len(split) == STEPS


@pytest.mark.parametrize(("stages", "checkpoint_group"), [(2, 0), (3, 2), extended(4, 0)])
def test_isolated_documents_are_bit_identical_for_every_number_of_stages(
    run, stages, checkpoint_group
):
    options = {"data__isolate_documents": True}
    split = run(
        **options,
        parallel__pipeline_stages=stages,
        training__checkpoint_activations=checkpoint_group,
    )
    assert split == run(**options)
    assert split != run()


def test_isolated_documents_are_equal_within_rounding_for_replicas_and_zero_stages(run):
    options = {"data__isolate_documents": True, **ALL_KEYS}
    for layout in ({"parallel__data_replicas": 2}, {"parallel__zero_stage": 2}):
        assert run(**options, **layout) == pytest.approx(run(**options), rel=ROUNDING)


def test_residual_scores_change_the_loss(run):
    assert run(model__attention__residual_scores=True) != run(
        model__attention__residual_scores=False
    )


@pytest.mark.parametrize(
    ("stages", "replicas", "zero_stage", "clipping"),
    pairwise(
        [
            (1, 1, 1, None),
            (1, 2, 0, None),
            (1, 2, 1, None),
            (2, 2, 1, None),
            (2, 1, 1, 0.3),
            (2, 2, 0, 0.3),
            (2, 2, 1, 0.3),
            (1, 2, 2, 0.3),
            (1, 2, 3, 0.3),
        ]
    ),
)
def test_losses_are_equal_within_rounding_for_replicas_and_zero_stages(
    run, stages, replicas, zero_stage, clipping
):
    options = {"optimizer__gradient_clipping": clipping, **ALL_KEYS}
    split = run(
        **options,
        parallel__pipeline_stages=stages,
        parallel__data_replicas=replicas,
        parallel__zero_stage=zero_stage,
    )
    assert split == pytest.approx(run(**options), rel=ROUNDING)


SELECTING = {"optimizer__gradient_clipping": 0.3}


@pytest.mark.parametrize(
    ("stages", "replicas", "zero_stage", "step"),
    [(2, 2, 1, 9), (1, 2, 3, 4), extended(2, 2, 1, 19), extended(1, 2, 3, 19)],
)
def test_a_step_that_selects_keys_is_the_same_from_the_same_state(
    finished, corpus, tmp_path, stages, replicas, zero_stage, step
):
    saved_every_step = {"checkpoint__interval": 1, "checkpoint__keep_last": 100}
    whole = finished(**SELECTING, **saved_every_step)
    name = f"step-{step:08d}"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).symlink_to(whole.folder / "checkpoints" / name)
    (tmp_path / "checkpoints" / "latest").write_text(f"{name}\n")
    options = {
        "parallel__pipeline_stages": stages,
        "parallel__data_replicas": replicas,
        "parallel__zero_stage": zero_stage,
        "training__steps": step + 1,
    }
    found = train(tiny_config(corpus, tmp_path, **SELECTING, **options))[-1]
    expected = whole.rows[step]
    for measure in ("step", "loss", "grad_norm"):
        assert found[measure] == pytest.approx(expected[measure], rel=ROUNDING)


def test_clipping_is_active_in_these_runs(run):
    assert run(optimizer__gradient_clipping=0.3) != run(optimizer__gradient_clipping=None)


def test_losses_are_bit_identical_for_every_number_of_stages_when_clipping(run):
    assert run(optimizer__gradient_clipping=0.3, parallel__pipeline_stages=3) == run(
        optimizer__gradient_clipping=0.3
    )


@pytest.mark.parametrize(
    ("stages", "replicas", "zero_stage"),
    [(2, 1, 0), (3, 1, 1), (1, 2, 1), extended(4, 1, 1), extended(2, 2, 1)],
)
def test_bf16_trains_alike_in_every_layout(run, stages, replicas, zero_stage):
    split = run(
        precision="bf16",
        parallel__pipeline_stages=stages,
        parallel__data_replicas=replicas,
        parallel__zero_stage=zero_stage,
    )
    # bf16 rounds 2^16 times as coarsely as float32; over replicas, gradients add up elsewhere.
    tolerance = 0 if replicas == 1 else 2.0**-8
    assert split == pytest.approx(run(precision="bf16"), rel=tolerance, abs=0)
    assert split[-1] < split[0] - 1


def test_scattered_weights_have_16_bits_as_well(run):
    scattered = run(precision="bf16", parallel__zero_stage=3)[0]
    # Before any update: the same weights, whose losses are averaged in another order.
    assert scattered == pytest.approx(run(precision="bf16")[0], rel=4 * EPSILON)
    assert scattered != pytest.approx(run()[0], rel=ROUNDING)


@pytest.mark.parametrize(
    ("stages", "zero_stage", "replicas"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 3, 2)]
)
def test_every_layer_learns_in_bf16(finished, stages, zero_stage, replicas):
    """The norm of all gradients is the one of fp32: no layer's gradient is lost on the way."""
    exact = finished(training__steps=3).rows  # the schedule warms up for two
    rounded = finished(
        precision="bf16",
        parallel__pipeline_stages=stages,
        parallel__zero_stage=zero_stage,
        parallel__data_replicas=replicas,
        training__steps=3,
    ).rows
    assert [row["grad_norm"] for row in rounded[:2]] == pytest.approx(
        [row["grad_norm"] for row in exact[:2]], rel=0.01
    )


def test_dropout_drops_the_same_elements_in_every_layout(run):
    options = {"model__dropout": 0.1, "model__attention__dropout": 0.1}
    split = run(**options, parallel__pipeline_stages=3, training__checkpoint_activations=1)
    assert split == run(**options)
    assert split != run()


def test_a_tied_head_trains_alike_on_one_stage_and_two(run):
    whole, split, sharded = (
        run(model__tied_head=True, **ALL_KEYS, **options)
        for options in (
            {},
            {"parallel__pipeline_stages": 2},
            {"parallel__zero_stage": 3, "parallel__data_replicas": 2},
        )
    )
    # The table's gradient is a sum over two stages here, and one sum there.
    assert split == pytest.approx(whole, rel=ROUNDING)
    assert sharded == pytest.approx(whole, rel=ROUNDING)


def test_offloading_changes_nothing(run):
    options = {
        "optimizer__gradient_clipping": 0.3,
        "parallel__zero_stage": 3,
        "parallel__data_replicas": 2,
        **ALL_KEYS,
    }
    assert run(**options, parallel__offload="all") == pytest.approx(run(**options), rel=ROUNDING)
