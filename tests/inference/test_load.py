"""The checkpoint that is asked for."""

import pytest

from megatron_gptx.checkpoint.choice import choose_checkpoint
from megatron_gptx.checkpoint.manifest import CheckpointError
from megatron_gptx.checkpoint.names import checkpoint_folder
from megatron_gptx.inference.evaluate import evaluate
from megatron_gptx.launcher.arguments import script_parser


@pytest.fixture(scope="module")
def run(finished):
    """Train four steps, of which every other one is saved."""
    found = finished(training__steps=4, checkpoint__interval=2, evaluation__interval=2)
    return found.config, {row["step"]: row["valid_loss"] for row in found.rows[1::2]}


def test_the_newest_checkpoint_is_the_default(run):
    assert choose_checkpoint(run[0].output.run_dir, None).step == 4


def test_a_step_of_the_run_is_found_and_evaluated(run):
    config, losses = run
    assert losses[2] != losses[4]
    for step in (2, 4):
        assert choose_checkpoint(config.output.run_dir, str(step)).step == step
        result = evaluate(config, wanted=str(step))
        # Sums in another order differ by a few float32 rounding steps.
        assert result.valid_loss == pytest.approx(losses[step], rel=64 * 2.0**-23)


def test_a_folder_of_a_checkpoint_or_of_a_run_is_found(run, tmp_path):
    run_dir = run[0].output.run_dir
    folder = checkpoint_folder(run_dir) / "step-00000002"
    assert choose_checkpoint(str(tmp_path), str(folder)).step == 2
    assert choose_checkpoint(str(tmp_path), run_dir).step == 4


def test_a_step_whose_save_was_interrupted_is_found(run, tmp_path):
    folder = checkpoint_folder(tmp_path)
    folder.mkdir()
    there = checkpoint_folder(run[0].output.run_dir) / "step-00000002"
    (folder / "step-00000002.replaced").symlink_to(there)
    assert choose_checkpoint(str(tmp_path), "2").step == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("3", r"no checkpoint of step 3; there are: step-00000002, step-00000004"),
        ("9" * 30, r"no checkpoint of step 9"),
        ("-1", r"--checkpoint -1: no such folder; give a step, or the folder of a checkpoint"),
        ("nowhere/else", r"--checkpoint nowhere/else: no such folder"),
        ("9" * 5000, r"--checkpoint 9{5000}: no such folder"),
        ("x" * 5000, r"--checkpoint x{5000}: no such folder"),
        (".", r"\. holds no checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_a_message(run, tmp_path, monkeypatch, wanted, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        choose_checkpoint(run[0].output.run_dir, wanted)


def test_a_run_that_has_saved_nothing_is_a_message(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        choose_checkpoint("elsewhere", str(tmp_path))


def test_a_checkpoint_may_lie_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")
    options = script_parser("evaluate.py", None).parse(["--config", "x", "--checkpoint=~/run"])
    assert options.checkpoint == "/the/home/run"
