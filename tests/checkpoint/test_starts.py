"""Where a run starts: at a chosen step, from another run's weights; and which step is its best."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_gptx.checkpoint.choice import at_step
from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, VanishedError, read
from megatron_gptx.checkpoint.names import checkpoints, step_of
from megatron_gptx.checkpoint.prune import delete_oldest, prune
from megatron_gptx.checkpoint.safetensors_files import SavedLayer
from megatron_gptx.commands.checkpoints import main as inspect
from megatron_gptx.config.section import findings
from megatron_gptx.config.training import CheckpointConfig
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.inference import load as inference
from megatron_gptx.model.sequential import GPTXSequential
from tests.checkpoints import flip, link_newest, write_checkpoint
from tests.runs import VOCAB_SIZE, start, tiny_config, train


def newest_of(run_dir: Path) -> Checkpoint:
    found = newest(run_dir)
    assert found is not None
    return found


def exact_weights(checkpoint: Checkpoint, num_layers: int) -> dict[str, torch.Tensor]:
    """Return the weights as exactly as a checkpoint holds them, by layer and name."""
    layers = {index: SavedLayer(checkpoint.path, index) for index in range(num_layers)}
    return {
        f"{index} {name}": layer.weight(name, exact=True).float()
        for index, layer in layers.items()
        for name in layer.names()
    }


def test_a_run_goes_back_to_a_chosen_step_and_repeats_what_followed(finished, corpus, tmp_path):
    options = {"training__steps": 6, "checkpoint__interval": 2}
    whole = finished(**options)
    whole.copy(tmp_path)
    screen = tmp_path / "screen"
    # A later one that is damaged is none of its business.
    flip(tmp_path / "checkpoints" / "step-00000006" / "manifest.json")
    config = tiny_config(corpus, tmp_path, **options, checkpoint__start="step-2")
    assert start(config, screen=screen) == [0]
    assert "resumed at step 2" in screen.read_text()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["loss"] for row in rows] == whole.losses
    assert newest_of(tmp_path).step == 6
    # So that the restarts of this launch go on from what follows.
    assert (tmp_path / "logs" / ".fresh").exists()


def test_a_step_without_a_checkpoint_is_refused_with_those_that_there_are(tmp_path):
    for step in (2, 4):
        write_checkpoint(tmp_path, step)
    assert at_step(tmp_path, 4).step == 4
    with pytest.raises(CheckpointError, match=r"of step 3; there are: step-00000002, step-0+4$"):
        at_step(tmp_path, 3)


@pytest.mark.parametrize("start", ["", "Auto", "step", "step-", "step--1", "step-2x", "latest"])
def test_a_start_is_a_word_or_a_step(start):
    assert CheckpointConfig(start="step-0012").start_step == 12
    with pytest.raises(ValueError, match="'auto', 'intact', 'fresh' or a step such as"):
        CheckpointConfig(start=start)


RATE = 1e-30
BEGINNINGS = {
    "one stage, fp32": {"precision": "fp32"},
    "two stages, ZeRO-1, bf16": {
        "precision": "bf16",
        "parallel__zero_stage": 1,
        "parallel__pipeline_stages": 2,
    },
    "ZeRO-3, bf16, two replicas": {
        "precision": "bf16",
        "parallel__zero_stage": 3,
        "parallel__data_replicas": 2,
    },
}


@pytest.mark.parametrize("layout", BEGINNINGS)
def test_a_run_begins_with_the_weights_of_another_and_nothing_else(
    forgeable, corpus, tmp_path, layout
):
    source = newest_of(Path(forgeable.output.run_dir))
    options = {
        **BEGINNINGS[layout],
        "training__steps": 1,
        "training__seed": 5,
        "schedule__warmup_steps": 0,
        "optimizer__lr": RATE,
        "checkpoint__initialize_from": str(source.path.parents[1]),
    }
    (row,) = train(tiny_config(corpus, tmp_path, **options))
    found = newest_of(tmp_path)
    assert found.manifest["state"] == {"step": 1, "samples": 8, "tokens": 256}
    assert found.manifest["optimizer"]["steps"] == 1
    assert row["lr"] == RATE
    num_layers = forgeable.model.num_pipeline_layers
    before, after = exact_weights(source, num_layers), exact_weights(found, num_layers)
    assert before.keys() == after.keys()
    # A first step of Adam moves a weight by the rate at most, which only a zero can feel.
    assert all((before[name] - after[name]).abs().max() <= 2 * RATE for name in before)


def test_a_run_that_has_begun_goes_on_from_its_own_checkpoint(forgeable, corpus, tmp_path):
    source = newest_of(Path(forgeable.output.run_dir)).path
    screen = tmp_path / "screen"
    options = {"checkpoint__initialize_from": str(source), "training__steps": 3}
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0]
    options["training__steps"] = 4
    assert start(tiny_config(corpus, tmp_path, **options), screen=screen) == [0]
    said = screen.read_text()
    assert said.count(f"initial weights: {source}") == 1
    assert "resumed at step 3" in said


def test_weights_that_are_damaged_or_of_another_model_begin_no_run(forgeable, corpus, tmp_path):
    found = link_newest(forgeable, tmp_path / "source")
    weights = found.path / "weights" / "layer-002.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    for changed, problem in (
        ({"checkpoint__initialize_from": str(tmp_path / "source")}, "is damaged: "),
        ({"checkpoint__initialize_from": str(tmp_path)}, "holds no checkpoint"),
        (
            {"checkpoint__initialize_from": forgeable.output.run_dir, "model__macaron": False},
            "holds another model:",
        ),
    ):
        run_dir = tmp_path / f"run {len(problem)}"
        config = tiny_config(corpus, run_dir, **changed)
        assert start(config, screen=tmp_path / "screen") == [2]
        assert problem in (tmp_path / "screen").read_text()
    assert "Traceback" not in (tmp_path / "screen").read_text()


def test_the_best_checkpoint_is_saved_when_it_is_found_and_kept(corpus, tmp_path, capsys):
    # What is learned of progressions makes random text less likely from some step on.
    with IndexedDatasetWriter(tmp_path / "random", np.uint16) as writer:
        writer.add_document(np.random.default_rng(1).integers(0, VOCAB_SIZE, 2000))
    options = {
        "data__valid": str(tmp_path / "random"),
        "checkpoint__keep_best": True,
        "checkpoint__keep_last": 1,
        "evaluation__interval": 2,
        "optimizer__lr": 0.03,
    }
    rows = train(tiny_config(corpus, tmp_path / "run", **options))
    measured = {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    best = min(measured, key=measured.__getitem__)
    assert 2 <= best < 20
    folder = tmp_path / "run" / "checkpoints"
    assert [step_of(path) for path in checkpoints(folder)] == [best, 20]
    assert newest_of(tmp_path / "run").manifest["best"] == {
        "step": best,
        "valid_loss": measured[best],
    }
    # A run that goes on knows it still.
    train(tiny_config(corpus, tmp_path / "run", **options, training__steps=22))
    assert [step_of(path) for path in checkpoints(folder)] == [best, 22]
    assert inspect(["list", str(tmp_path / "run")]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "best",
        "latest",
    ]


def test_neither_pruning_nor_a_full_disk_deletes_the_best_checkpoint(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    last = write_checkpoint(tmp_path, 4, best={"step": 2, "valid_loss": 1.0})
    (tmp_path / "checkpoints" / "latest").write_text(last.name)
    options = CheckpointConfig(keep_last=1)
    dropped = delete_oldest(tmp_path / "checkpoints", options)
    assert dropped is not None
    assert step_of(dropped) == 1
    assert [step_of(p) for p in prune(tmp_path / "checkpoints", newest=last, options=options)] == [
        3
    ]
    assert delete_oldest(tmp_path / "checkpoints", options) is None


def test_the_best_checkpoint_needs_validation_losses(corpus, tmp_path):
    for options in ({}, {"evaluation__interval": 2, "data__valid": None}):
        config = tiny_config(corpus, tmp_path, **options, checkpoint__keep_best=True)
        assert [key for key, _ in findings(config.checks())] == ["checkpoint.keep_best"]
    config = tiny_config(corpus, tmp_path, evaluation__interval=2, checkpoint__keep_best=True)
    assert list(findings(config.checks())) == []


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_damaged(forgeable, tmp_path):
    found = link_newest(forgeable, tmp_path / "run")
    names = all_names(found)
    shutil.rmtree(found.path)
    for read_it in (
        lambda: damage(found, names),
        lambda: all_names(found),
        lambda: read(found.path),
        lambda: load_layers(found, GPTXSequential(forgeable.model).local_layers()),
    ):
        with pytest.raises(VanishedError, match="is not there, or no more"):
            read_it()


def test_a_file_that_is_missing_from_a_checkpoint_is_damage(forgeable, tmp_path):
    found = link_newest(forgeable, tmp_path / "run")
    (found.path / "weights" / "layer-000.safetensors").unlink()
    assert str(damage(found, all_names(found))).endswith("layer-000.safetensors is missing")


def test_a_model_is_read_beside_a_run_that_saves_and_deletes(forgeable, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    config = forgeable.model_copy(
        update={"output": forgeable.output.model_copy(update={"run_dir": str(run_dir)})}
    )
    old = link_newest(forgeable, run_dir).path
    reading = inference.load_layers

    def while_it_trains(checkpoint, layers):
        if checkpoint.path == old:  # the run replaces it by a newer one
            new = old.with_name("elsewhere")
            old.rename(new)
            new.rename(run_dir / "checkpoints" / "step-00000001.replaced")
        reading(checkpoint, layers)

    monkeypatch.setattr(inference, "load_layers", while_it_trains)
    _, checkpoint = inference.load_chosen(config, None, torch.device("cpu"))
    assert checkpoint.path.name == "step-00000001.replaced"


def test_the_newest_checkpoint_is_found_beside_a_run_that_saves_and_deletes(tmp_path, monkeypatch):
    from megatron_gptx.checkpoint import latest as module

    first = write_checkpoint(tmp_path, 1)
    latest = tmp_path / "checkpoints" / "latest"
    latest.write_text(first.name)
    listing = module.checkpoints

    def while_it_trains(folder):
        if first.exists():
            latest.write_text(write_checkpoint(tmp_path, 2).name)
            shutil.rmtree(first)
        return listing(folder)

    monkeypatch.setattr(module, "checkpoints", while_it_trains)
    assert newest_of(tmp_path).step == 2


def test_the_tools_pass_over_a_checkpoint_that_is_deleted_meanwhile(tmp_path, monkeypatch, capsys):
    from megatron_gptx.commands import checkpoints as tool

    for step in (1, 2):
        last = write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text(last.name)
    listing = tool.checkpoints

    def before_it_is_read(folder):
        found = listing(folder)
        shutil.rmtree(found[0], ignore_errors=True)
        return found

    for action in ("list", "verify"):
        with monkeypatch.context() as patch:
            patch.setattr(tool, "checkpoints", before_it_is_read)
            assert tool.main([action, str(tmp_path)]) == 0
        write_checkpoint(tmp_path, 1)
    said = capsys.readouterr()
    assert "damaged" not in said.out + said.err


def test_a_best_checkpoint_that_was_not_saved_is_not_remembered(corpus, tmp_path, monkeypatch):
    with IndexedDatasetWriter(tmp_path / "random", np.uint16) as writer:
        writer.add_document(np.random.default_rng(1).integers(0, VOCAB_SIZE, 2000))
    monkeypatch.setenv("GPTX_FAULT", "full:at=manifest:step=4")
    options = {
        "data__valid": str(tmp_path / "random"),
        "checkpoint__keep_best": True,
        "evaluation__interval": 4,
        "optimizer__lr": 0.03,
        "training__steps": 13,
    }
    rows = train(tiny_config(corpus, tmp_path / "run", **options))
    measured = {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    assert min(measured, key=measured.__getitem__) == 4
    saved = [step_of(path) for path in checkpoints(tmp_path / "run" / "checkpoints")]
    assert 4 not in saved
    best = newest_of(tmp_path / "run").manifest["best"]
    assert best["step"] in saved
    assert best["valid_loss"] == min(loss for step, loss in measured.items() if step != 4)
