"""Metrics of layers are those of a plain backward pass, in every layout, and change nothing."""

import math

import pytest
import torch
from safetensors.torch import load_file

from megatron_gptx.checkpoint.names import step_name
from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.model.sequential import GPTXSequential
from tests.pairs import extended
from tests.runs import tiny_config, train, without_speed

# Gates have moved away from 0 by the third step; until then, branches have no gradient.
STEPS = 3
LAYERS, BLOCKS, BRANCHES = 7, 4, 3
# As in test_layouts.py: sums in another order, and no selection that the last digit decides.
ROUNDING = 64 * 2.0**-23
OPTIONS = {
    "training__steps": STEPS,
    "model__attention__top_k": 32,
    "ops__backend": "reference",
    "optimizer__gradient_clipping": 0.3,
}
MEASURED = {**OPTIONS, "logging__layer_interval": 1}
ONE_PROCESS = {**MEASURED, "checkpoint__interval": 1}


def of_layers(row):
    return {name: value for name, value in row.items() if name.startswith(("grad_norm/", "gate/"))}


@pytest.fixture(scope="module")
def plain(finished):
    """Return the metrics of the last step, computed from its weights without DeepSpeed."""
    run = finished(**ONE_PROCESS)
    config = run.config
    model = GPTXSequential(config.model)
    weights = run.folder / "checkpoints" / step_name(STEPS - 1) / "weights"
    for index, layer in model.local_layers().items():
        layer.load_state_dict(load_file(weights / f"layer-{index:03d}.safetensors"))
    data = build_datasets(
        config.data, seq_length=config.model.seq_length, seed=config.training.seed
    )
    with StepLoader(
        data.train,
        config.batch,
        replica=0,
        replicas=1,
        vocab_size=config.model.vocab_size,
        prefetch=0,
    ) as loader:
        batch = next(loader.steps((STEPS - 1) * config.batch.global_size))
    num_labels = torch.tensor(float(sum((one.labels != IGNORE).sum() for one in batch)))
    for one in batch:
        model(one.tokens, one.labels, num_labels).backward()
    found = {}
    for index, layer in model.local_layers().items():
        squares = sum(p.grad.double().square().sum().item() for p in layer.parameters())
        found[f"grad_norm/layer-{index:03d}"] = math.sqrt(squares)
        for name, parameter in layer.named_parameters():
            if name.endswith(".gate"):
                found[f"gate/layer-{index:03d}/{name.removesuffix('.gate')}"] = parameter.item()
    return found


def test_one_process_records_what_a_plain_backward_pass_gives(finished, plain):
    found = of_layers(finished(**ONE_PROCESS).rows[-1])
    assert found == pytest.approx(plain, rel=ROUNDING)
    assert sum(name.startswith("grad_norm/") for name in found) == LAYERS
    gates = {name: value for name, value in found.items() if name.startswith("gate/")}
    assert len(gates) == BLOCKS * BRANCHES
    assert all(gates.values())


@pytest.mark.parametrize(
    ("stages", "replicas", "zero_stage", "more"),
    [
        (2, 2, 0, {}),
        (2, 2, 1, {}),
        (1, 2, 2, {}),
        (1, 2, 3, {}),
        extended(1, 2, 2, {"parallel__offload": "optimizer"}),
        extended(1, 2, 3, {"parallel__offload": "all"}),
        extended(2, 2, 1, {"optimizer__name": "lion", "optimizer__lr": 0.001}),
    ],
)
def test_every_layout_records_what_one_process_does(finished, stages, replicas, zero_stage, more):
    layout = {
        "parallel__pipeline_stages": stages,
        "parallel__data_replicas": replicas,
        "parallel__zero_stage": zero_stage,
    }
    found = finished(**{**MEASURED, **layout, **more}).rows
    optimizer = {key: value for key, value in more.items() if key.startswith("optimizer")}
    expected = finished(**{**ONE_PROCESS, **optimizer}).rows
    assert [of_layers(row) for row in found] == [
        pytest.approx(of_layers(row), rel=ROUNDING, abs=1e-9) for row in expected
    ]


@pytest.mark.parametrize(("stages", "zero_stage"), [(2, 1), extended(1, 2), extended(1, 3)])
def test_below_fp32_the_norms_of_layers_make_up_the_norm_of_all(finished, stages, zero_stage):
    rows = finished(
        **MEASURED,
        precision="bf16",
        parallel__pipeline_stages=stages,
        parallel__data_replicas=2,
        parallel__zero_stage=zero_stage,
    ).rows
    for row in rows:
        squares = [v**2 for k, v in row.items() if k.startswith("grad_norm/")]
        assert len(squares) == LAYERS
        # Before clipping; DeepSpeed adds up in float32.
        assert math.sqrt(sum(squares)) == pytest.approx(row["grad_norm"], rel=ROUNDING)


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(1, "fp32"), extended(0, "fp32"), extended(1, "bf16")]
)
def test_a_stage_may_have_nothing_to_record(finished, zero_stage, precision):
    """Four stages of a layer each; the last one has only a copy of the first one's table."""
    rows = finished(
        **{**MEASURED, "model__num_layers": 1},
        model__tied_head=True,
        parallel__pipeline_stages=4,
        parallel__zero_stage=zero_stage,
        precision=precision,
    ).rows
    for row in rows:
        squares = [v**2 for k, v in row.items() if k.startswith("grad_norm/")]
        assert len(squares) == 3
        assert math.sqrt(sum(squares)) == pytest.approx(row["grad_norm"], rel=ROUNDING)


@pytest.mark.parametrize("zero_stage", [0, extended(1)])
def test_a_gradient_that_is_not_finite_shows_in_its_layer(
    corpus, tmp_path, monkeypatch, zero_stage
):
    monkeypatch.setenv("GPTX_FAULT", "nan:at=gradient:step=1:rank=0")
    layout = {"parallel__pipeline_stages": 2, "parallel__zero_stage": zero_stage}
    rows = train(tiny_config(corpus, tmp_path, **MEASURED, **layout))
    assert [[k for k, v in of_layers(row).items() if v is None] for row in rows] == [
        [],
        ["grad_norm/layer-000"],
        [],
    ]


@pytest.mark.parametrize(
    ("stages", "zero_stage", "precision"),
    [(2, 0, "fp32"), extended(2, 1, "fp32"), extended(1, 3, "fp32"), extended(2, 1, "bf16")],
)
def test_measuring_now_and_then_changes_no_other_number(finished, stages, zero_stage, precision):
    options = {
        **OPTIONS,
        "precision": precision,
        "parallel__pipeline_stages": stages,
        "parallel__data_replicas": 2,
        "parallel__zero_stage": zero_stage,
    }
    off = finished(**options).rows
    on = finished(**options, logging__layer_interval=2).rows
    assert [bool(of_layers(row)) for row in on] == [False, True, False]
    kept = [{name: row[name] for name in row.keys() - of_layers(row)} for row in on]
    assert without_speed(kept) == without_speed(off)
