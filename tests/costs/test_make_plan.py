"""The plan of a run, as numbers and as a table."""

import json
from dataclasses import fields

import pytest

from megatron_gptx.costs.plan import Plan, StagePlan, make_plan


def test_the_reference_plan_has_the_specified_numbers(reference_config):
    plan = make_plan(reference_config)
    assert plan.parameters == 1_099_214_888
    assert [stage.parameters for stage in plan.stages] == [550_653_972, 548_560_916]
    edges = [(stage.first_layer, stage.stop_layer) for stage in plan.stages]
    assert edges == [(0, 11), (11, 23)]
    assert plan.boundary_bytes == (1024 * 2048 * 2,)
    assert plan.tokens_per_step == 4096
    assert plan.world_size == 2
    assert [stage.micro_batches_in_flight for stage in plan.stages] == [2, 1]
    assert all(stage.peak_bytes < 16 * 2**30 for stage in plan.stages)


def test_the_dictionary_survives_json_exactly(reference_config):
    numbers = make_plan(reference_config).as_dict()
    assert json.loads(json.dumps(numbers)) == json.loads(json.dumps(numbers, allow_nan=False))
    assert set(numbers) == {field.name for field in fields(Plan)}
    for stage in numbers["stages"]:
        assert set(stage) == {field.name for field in fields(StagePlan)}
        assert {type(value) for value in stage.values()} == {int}
    texts = {"precision": str, "stages": tuple, "boundary_bytes": tuple}
    for name, value in numbers.items():
        assert type(value) is texts.get(name, int), name


def test_stages_add_up_to_the_model(make_config):
    for tied_head in (False, True):
        for num_stages in range(1, 7):
            config = make_config(
                model={"tied_head": tied_head}, parallel={"pipeline_stages": num_stages}
            )
            plan = make_plan(config)
            assert sum(stage.parameters for stage in plan.stages) == plan.parameters
            work = sum(stage.training_flops_per_token for stage in plan.stages)
            assert work == pytest.approx(plan.training_flops_per_token, abs=num_stages)
            assert len(plan.boundary_bytes) == num_stages - 1


def test_the_peak_counts_activations_or_the_step(make_config):
    small = make_plan(make_config(model={"seq_length": 2, "num_layers": 9})).stages[0]
    large = make_plan(make_config(model={"seq_length": 99})).stages[0]
    assert small.optimizer_step_bytes > small.activation_bytes
    assert large.optimizer_step_bytes < large.activation_bytes
    for stage in (small, large):
        lasting = stage.weight_bytes + stage.gradient_bytes + stage.optimizer_bytes
        assert stage.peak_bytes - lasting == max(stage.activation_bytes, stage.optimizer_step_bytes)


def test_undecided_replicas_count_as_one(make_config):
    assert make_plan(make_config()).data_replicas == 1
    plan = make_plan(make_config(parallel={"data_replicas": 3, "pipeline_stages": 2}))
    assert (plan.world_size, plan.global_batch_size) == (6, 2 * 4 * 3)


def test_half_precision_without_zero_is_planned_as_it_runs(make_config):
    for precision, zero_stage in (("fp32", 0), ("bf16", 1), ("fp16", 1)):
        config = make_config(precision=precision, parallel={"zero_stage": 0})
        assert make_plan(config).zero_stage == zero_stage


REFERENCE_TABLE = """\
model    1,099,214,888 parameters in 23 layers
layout   2 stages x 1 replica = 2 processes, ZeRO-1, fp16
step     4,096 tokens in 4 sequences = 1 per micro-batch x 4 accumulated x 1 replica
compute  6.44 GFLOPs per token, 26.4 TFLOPs per step

                                   ----------------- GiB on each process -----------------
stage  layers   parameters   work  weights  gradients  optimizer  activations  step   peak   to next
    0    0-10  550,653,972  47.9%     1.03       1.03       6.15         1.40  3.08  11.28  4.00 MiB
    1   11-22  548,560,916  52.1%     1.02       1.02       6.13         0.91  3.07  11.24         -

peak = weights + gradients + optimizer + the larger of activations and the optimizer's step.
The device's own context and DeepSpeed's communication buckets come on top."""


def test_the_table_of_the_reference_reads_well(reference_config):
    assert make_plan(reference_config).table() == REFERENCE_TABLE


@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
def test_every_row_of_the_table_ends_in_one_column(make_config, num_stages):
    table = make_plan(make_config(parallel={"pipeline_stages": num_stages})).table().splitlines()
    start = next(at for at, line in enumerate(table) if line.startswith("stage"))
    rows = table[start : start + 1 + num_stages]
    assert len({len(row) for row in rows}) == 1
    assert [row.split()[0] for row in rows[1:]] == [str(stage) for stage in range(num_stages)]
    assert table[start - 1].startswith(" ")
    assert len(table[start - 1]) < len(rows[0])


def test_recomputation_and_offloading_appear_only_where_configured(make_config):
    plain = make_plan(make_config()).table()
    assert "recomputation" not in plain
    assert "host" not in plain
    offloaded = make_config(
        training={"checkpoint_activations": 1},
        parallel={"zero_stage": 2, "offload": "optimizer"},
    )
    table = make_plan(offloaded).table()
    assert "recomputation" in table
    assert "host" in table


def activations(config, **options):
    return make_plan(config, **options).stages[0].activation_bytes


def test_a_cpu_keeps_what_its_backend_keeps(make_config):
    top_k = {"model": {"attention": {"top_k": 2}}, "launch": {"device": "cpu"}}
    kernels, plain = (
        activations(make_config(**top_k, ops={"backend": backend}))
        for backend in ("auto", "reference")
    )
    assert kernels < plain


def test_a_plan_is_for_the_given_device_and_else_for_a_gpu(make_config):
    model = {"attention": {"top_k": 2, "residual_scores": True}}
    auto, cpu = (make_config(model=model, launch={"device": name}) for name in ("auto", "cpu"))
    assert activations(auto, device="cpu") == activations(cpu) != activations(auto)
    assert activations(auto) == activations(cpu, device="cuda")
