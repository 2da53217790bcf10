"""Every optimizer trains alike on one stage and two, and goes on from its own checkpoints."""

from pathlib import Path
from typing import get_args

import pytest

from megatron_gptx.checkpoint.changes import check_optimizer
from megatron_gptx.checkpoint.compare import WEIGHT, differences
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, read
from megatron_gptx.checkpoint.optimizer_state import MASTER
from megatron_gptx.config.optimizers import OPTIMIZERS, OptimizerName
from tests.runs import losses, start, tiny_config, train, without_speed

NAMES = get_args(OptimizerName)
# AdamW alone has the layouts of tests/training/test_resume.py.
OTHERS = [name for name in NAMES if name != "adamw"]
MATRICES = ("qkv.weight", "output.weight", "up.weight", "down.weight")
GOLDEN = Path(__file__).parent / "golden" / "format-4" / "checkpoints" / "step-00000003"
# A rate of Lion's, which moves every weight by all of it.
OPTIONS = {"optimizer__lr": 0.003, "optimizer__gradient_clipping": 0.5, "training__steps": 6}


def options_of(name: str, zero_stage: int, stages: int, replicas: int, precision: str) -> dict:
    return {
        **OPTIONS,
        "optimizer__name": name,
        "parallel__zero_stage": zero_stage,
        "parallel__pipeline_stages": stages,
        "parallel__data_replicas": replicas,
        "precision": precision,
    }


@pytest.fixture(scope="module")
def saved(corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """Train on two stages with a checkpoint in the middle; return the folder and the metrics."""
    done: dict[str, tuple[Path, list[dict[str, float]]]] = {}

    def train_once(name: str) -> tuple[Path, list[dict[str, float]]]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            options = {**options_of(name, 0, 2, 1, "fp32"), "checkpoint__interval": 3}
            done[name] = folder, train(tiny_config(corpus, folder, **options))
        return done[name]

    return train_once


@pytest.mark.parametrize("name", OTHERS)
def test_losses_are_bit_identical_on_one_stage_and_two(saved, corpus, tmp_path, name):
    whole = train(tiny_config(corpus, tmp_path, **options_of(name, 0, 1, 1, "fp32")))
    assert losses(whole) == losses(saved(name)[1])
    assert losses(whole)[-1] < losses(whole)[0]


def test_optimizers_differ_in_what_they_learn(saved):
    assert len({losses(saved(name)[1])[-1] for name in OTHERS}) == len(OTHERS)


def go_back(folder: Path, target: Path) -> None:
    """Give a new run folder the checkpoint of step 3 alone."""
    name = "step-00000003"
    (target / "checkpoints").mkdir()
    (target / "checkpoints" / name).symlink_to(folder / "checkpoints" / name)
    (target / "checkpoints" / "latest").write_text(f"{name}\n")


@pytest.mark.parametrize("name", OTHERS)
def test_a_resumed_run_takes_the_same_steps(saved, corpus, tmp_path, name):
    folder, whole = saved(name)
    go_back(folder, tmp_path)
    # On one stage: the file of each layer names no arrangement.
    resumed = train(tiny_config(corpus, tmp_path, **options_of(name, 0, 1, 1, "fp32")))
    assert without_speed(resumed) == without_speed(whole)[3:]


def resumes_bit_by_bit(corpus: Path, folder: Path, options: dict) -> None:
    whole = train(tiny_config(corpus, folder, **options, checkpoint__interval=3))
    (folder / "checkpoints" / "latest").write_text("step-00000003\n")
    assert without_speed(train(tiny_config(corpus, folder, **options))) == without_speed(whole)


def test_lion_resumes_bit_by_bit_in_bf16_with_shared_state(corpus, tmp_path):
    resumes_bit_by_bit(corpus, tmp_path, options_of("lion", 2, 1, 2, "bf16"))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "zero_stage", "stages", "replicas", "precision"),
    [
        ("lion", 0, 1, 2, "fp32"),
        ("lion", 1, 1, 1, "bf16"),
        ("lion", 1, 2, 2, "bf16"),
        ("lion", 1, 2, 1, "fp32"),
        ("lion", 2, 1, 2, "fp32"),
        ("lion", 3, 1, 1, "bf16"),
        ("lion", 3, 1, 2, "fp32"),
        ("muon", 0, 1, 2, "fp32"),
        ("muon", 0, 2, 2, "fp32"),
        ("muon", 0, 3, 1, "fp32"),
    ],
)
def test_a_run_resumes_bit_by_bit_in_every_layout(
    corpus, tmp_path, name, zero_stage, stages, replicas, precision
):
    options = options_of(name, zero_stage, stages, replicas, precision)
    resumes_bit_by_bit(corpus, tmp_path, options)


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_holds_the_moments_that_are_listed(saved, name):
    found = newest(saved(name)[0])
    assert found is not None
    facts, kinds = OPTIMIZERS[name], {}
    for each in differences(found, found):
        assert each.equal
        kinds.setdefault((each.layer, each.name), set()).add(each.kind)
    assert len(kinds) > 10
    for (layer, parameter), present in kinds.items():
        matrix = parameter.endswith(MATRICES)
        listed = facts.matrix_moments if matrix and facts.matrix_moments else facts.moments
        assert present - {WEIGHT, MASTER} == set(listed), (layer, parameter)


def golden() -> Checkpoint:
    found = read(GOLDEN)
    assert "name" not in found.manifest["config"]["optimizer"]
    return found


def test_a_checkpoint_that_names_no_optimizer_is_of_adamw():
    check_optimizer(golden(), "adamw")
    with pytest.raises(CheckpointError) as caught:
        check_optimizer(golden(), "lion")
    assert str(caught.value) == (
        f"{GOLDEN} holds the state of adamw, and optimizer.name is lion, which cannot go on from "
        "it; set optimizer.name: adamw to resume, or choose another output.run_dir and begin with "
        f"the weights alone: checkpoint.initialize_from: {GOLDEN}"
    )


def test_another_optimizer_does_not_resume_but_begins_with_the_weights(saved, corpus, tmp_path):
    folder, whole = saved("lion")
    before = newest(folder)
    assert before is not None
    screen = tmp_path / "screen"
    other = {**options_of("muon", 0, 1, 1, "fp32"), "training__steps": 8}
    assert start(tiny_config(corpus, folder, **other), screen=screen) == [2]
    assert "holds the state of lion, and optimizer.name is muon" in screen.read_text()
    rows = train(
        tiny_config(
            corpus,
            tmp_path / "begun",
            **{**other, "training__steps": 1},
            checkpoint__initialize_from=str(before.path),
        )
    )
    # The seed is the same: from its own weights it would begin with the same loss.
    assert rows[0]["loss"] < whole[0]["loss"]
