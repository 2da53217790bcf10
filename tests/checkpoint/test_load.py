"""What is loaded is what was saved, by the same model in the same layout, and never code."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_gptx.checkpoint.changes import changed_options, check_model
from megatron_gptx.checkpoint.choice import candidates
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.checkpoint.names import step_name, step_of
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.command_line import encode
from megatron_gptx.model.sequential import GPTXSequential
from tests.checkpoints import OPTIMIZER_FILE, WEIGHTS_FILE, flip, vouch_for
from tests.runs import start, start_ranks, tiny_config


@pytest.fixture(scope="module")
def trained(finished) -> Config:
    """Train two steps on one rank, with files of the model and of ZeRO's optimizer."""
    return finished(training__steps=2, parallel__zero_stage=1).config


@pytest.fixture
def resumed(corpus, trained, tmp_path) -> Callable[..., str]:
    """Resume from a copy of the trained run that something was done to; return the screen."""

    def resumed(change: Callable[[Path], object] = lambda path: None, **options: object) -> str:
        run_dir, screen = tmp_path / "run", tmp_path / "screen"
        shutil.copytree(trained.output.run_dir, run_dir)
        found = newest(run_dir)
        assert found is not None
        change(found.path)
        options = {"training__steps": 3, "parallel__zero_stage": 1, **options}
        assert start(tiny_config(corpus, run_dir, **options), screen=screen) == [2]
        assert "Traceback" not in screen.read_text()
        return screen.read_text().partition("\nerror on rank 0: ")[2]

    return resumed


class Trap:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def set_trap(path: Path, trap: Path) -> None:
    torch.save({"module": Trap(trap)}, path)


def saved_twice(packed: str, target: Path) -> None:
    """Resume a run and save it again in another place."""
    from megatron_gptx.checkpoint.load import resume
    from megatron_gptx.checkpoint.save import Saver
    from megatron_gptx.distributed.process import Process, run_worker
    from megatron_gptx.launcher.command_line import decode
    from megatron_gptx.training.build import build_engine

    config = decode(packed)

    def work(process: Process) -> None:
        # Other initial weights than the saved ones, so that it shows whether these are loaded.
        other = config.training.model_copy(update={"seed": 5})
        fresh = config.model_copy(update={"training": other})
        engine = build_engine(fresh, process, say=lambda text: None)
        loaded = resume(engine.deepspeed, config=config, say=print)
        assert loaded is not None
        output = config.output.model_copy(update={"run_dir": str(target)})
        config_there = config.model_copy(update={"output": output})
        saver = Saver(engine.deepspeed, config_there, replica=engine.replica, say=print)
        saver.save(loaded.manifest["state"], last=True)

    run_worker(work, run_dir=target, launch=LaunchConfig(timeout_seconds=60))


def test_loading_and_saving_gives_the_same_state(finished, tmp_path):
    first = finished(training__steps=2)
    assert start_ranks(saved_twice, 1, encode(first.config), tmp_path) == [0]
    before, after = newest(first.folder), newest(tmp_path)
    assert before is not None
    assert after is not None
    assert (
        after.manifest["state"]
        == before.manifest["state"]
        == {
            "step": 2,
            "samples": 16,
            "tokens": 512,
        }
    )
    assert before.manifest["optimizer"] == after.manifest["optimizer"] != {}
    assert before.manifest["files"] == after.manifest["files"]
    moments = load_file(before.path / OPTIMIZER_FILE)
    assert len(moments) > 10
    assert all(tensor.any() for tensor in moments.values())


@pytest.mark.parametrize("name", [WEIGHTS_FILE, OPTIMIZER_FILE])
def test_a_flipped_bit_is_named_with_its_file(resumed, name):
    said = resumed(lambda path: flip(path / name))
    assert said.count(f"/{name} has changed since it was saved (its checksum differs)") == 1


def test_every_damaged_file_is_missed_at_once(resumed):
    def change(path: Path) -> None:
        (path / OPTIMIZER_FILE).unlink()
        (path / "optimizer" / "extra.pt").touch()

    said = resumed(change)
    # Each rank names the first that it meets, and there is one rank.
    assert "is damaged: " in said
    assert "/optimizer/extra.pt is not in the manifest" in said


@pytest.mark.parametrize("name", [WEIGHTS_FILE, OPTIMIZER_FILE])
def test_a_pickled_object_is_not_even_read(resumed, tmp_path, name):
    trap = tmp_path / "trap"
    said = resumed(lambda path: set_trap(path / name, trap))
    assert f"/{name} has " in said
    assert not trap.exists()


@pytest.mark.parametrize("name", [WEIGHTS_FILE, OPTIMIZER_FILE])
def test_a_pickled_object_that_the_manifest_vouches_for_is_not_executed(resumed, tmp_path, name):
    trap = tmp_path / "trap"

    def forge(path: Path) -> None:
        set_trap(path / name, trap)
        vouch_for(path, name)

    assert "does not fit this model" in resumed(forge)
    assert not trap.exists()


def test_the_trap_of_these_tests_works(tmp_path):
    set_trap(tmp_path / "file.pt", tmp_path / "trap")
    options = {"weights_only": False}  # as nothing in this repository may be loaded
    torch.load(tmp_path / "file.pt", **options)
    assert (tmp_path / "trap").exists()


def test_a_missing_latest_stops_a_run(resumed):
    said = resumed(lambda path: (path.parent / "latest").unlink())
    assert "holds step-00000002 but no file 'latest'" in said


def test_a_latest_that_points_elsewhere_stops_a_run(resumed):
    said = resumed(lambda path: (path.parent / "latest").write_text("../other"))
    assert "latest names '../other', which is no checkpoint" in said


def test_a_fresh_start_beside_a_checkpoint_is_refused(resumed):
    said = resumed(checkpoint__start="fresh")
    assert "checkpoint.start is 'fresh', but " in said


def test_a_damaged_checkpoint_is_passed_over_where_that_is_asked_for(finished, corpus, tmp_path):
    options = {"checkpoint__interval": 2, "parallel__pipeline_stages": 2}
    whole = finished(training__steps=6, **options)
    whole.copy(tmp_path / "run")
    for name, damaged in (("step-00000006", WEIGHTS_FILE), ("step-00000004", "manifest.json")):
        flip(tmp_path / "run" / "checkpoints" / name / damaged)
    options["checkpoint__start"] = "intact"
    config = tiny_config(corpus, tmp_path / "run", training__steps=6, **options)
    screen = tmp_path / "screen"
    assert start(config, screen=screen) == [0, 0]
    said = screen.read_text()
    assert said.count("passed over: ") == 2
    assert "step-00000006 is damaged: " in said
    assert "resumed at step 2" in said
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["loss"] for row in rows] == whole.losses


def test_what_an_intact_start_passed_over_is_a_future_given_up(finished, corpus, tmp_path):
    finished(training__steps=4, checkpoint__interval=2).copy(tmp_path)
    folder = tmp_path / "checkpoints"
    flip(folder / "step-00000004" / WEIGHTS_FILE)
    # It has no steps left to take, and so saves nothing itself.
    assert start(tiny_config(corpus, tmp_path, training__steps=2, checkpoint__start="intact")) == [
        0
    ]
    assert (folder / "latest").read_text() == "step-00000002\n"
    assert [step_of(path) for path in candidates(tmp_path)] == [2, 4]


@pytest.mark.parametrize(
    ("latest", "order"), [("step-00000004", [4, 2, 8, 6]), ("step-00000005", [8, 6, 4, 2])]
)
def test_a_future_that_was_given_up_is_tried_last(tmp_path, latest, order):
    for step in (2, 4, 6, 8):
        (tmp_path / "checkpoints" / step_name(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").write_text(latest)
    assert [step_of(path) for path in candidates(tmp_path)] == order


def test_a_checkpoint_names_the_versions_that_saved_it(trained):
    checkpoint = newest(trained.output.run_dir)
    assert checkpoint is not None
    # PyTorch alone says which CUDA it was built for; the name of its package may leave that out.
    versions = {name: version(name) for name in ("megatron_gptx", "deepspeed")}
    assert checkpoint.manifest["versions"] == {**versions, "torch": str(torch.__version__)}


def test_another_model_is_refused_with_all_differences(trained, corpus, tmp_path):
    checkpoint = newest(trained.output.run_dir)
    assert checkpoint is not None
    other = tiny_config(
        corpus, tmp_path, model__hidden_size=64, model__attention__top_k=None, model__dropout=0.5
    )
    with pytest.raises(CheckpointError) as caught:
        check_model(checkpoint, other.model)
    assert str(caught.value).splitlines() == [
        f"{checkpoint.path} holds another model:",
        "  model.attention.top_k: 8 in the checkpoint, None in the configuration",
        "  model.hidden_size: 32 in the checkpoint, 64 in the configuration",
    ]


def test_a_changed_blend_is_named_whatever_its_paths(corpus, tmp_path):
    saved, wanted = (
        tiny_config(corpus, tmp_path, data__train={"v1.0/code": weight, "../text": 1.0})
        for weight in (1.0, 2.0)
    )
    checkpoint = Checkpoint(tmp_path, {"config": saved.model_dump()})
    assert changed_options(checkpoint, saved) == []
    assert changed_options(checkpoint, wanted) == ["data.train.v1.0/code 1.0 -> 2.0"]


def test_a_weights_file_of_another_layer_does_not_fit(trained, tmp_path):
    shutil.copytree(trained.output.run_dir, tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    assert checkpoint is not None
    shutil.copy(checkpoint.path / "weights/layer-000.safetensors", checkpoint.path / WEIGHTS_FILE)
    vouch_for(checkpoint.path, WEIGHTS_FILE)
    checkpoint = newest(tmp_path / "run")
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match=r"layer-002.safetensors does not fit its layer"):
        load_layers(checkpoint, GPTXSequential(trained.model).local_layers())


def test_a_peer_that_is_lost_while_loading_is_no_misfit(finished, corpus, tmp_path, monkeypatch):
    options = {"parallel__data_replicas": 2, "parallel__zero_stage": 3}
    finished(training__steps=1, **options).copy(tmp_path)
    monkeypatch.setenv("GPTX_FAULT", "kill:at=load:rank=1")
    config, screen = tiny_config(corpus, tmp_path, **options), tmp_path / "screen"
    # Rank 0 leaves it to the launcher, which has seen how rank 1 ended, to say so.
    assert start(config, screen=screen) == [-signal.SIGTERM, -signal.SIGKILL]
    assert "error on rank" not in screen.read_text()
    said = (tmp_path / "logs" / "rank-0.log").read_text().partition("Traceback")[2]
    assert "peer" in said
    assert "does not fit this model" not in said
