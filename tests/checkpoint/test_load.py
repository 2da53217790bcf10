"""What is loaded is what was saved, by the same model in the same layout, and never code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_gptx.checkpoint.layout import Checkpoint, CheckpointError, checksum, newest
from megatron_gptx.checkpoint.load import (
    changed_options,
    check_layout,
    check_model,
    load_layers,
)
from megatron_gptx.checkpoint.save import layout_of
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.command import encode
from megatron_gptx.model.sequential import GPTXSequential
from tests.runs import start, start_ranks, tiny_config, train, write_corpus

ENGINE_FILE = "engine/mp_rank_00_model_states.pt"
OPTIMIZER_FILE = "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt"
WEIGHTS_FILE = "weights/layer-002.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Config:
    """Train two steps on one rank, with files of the model and of ZeRO's optimizer."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(corpus, run_dir, training__steps=2, parallel__zero_stage=1)
    train(config)
    return config


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


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Trap:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def set_trap(path: Path, trap: Path) -> None:
    torch.save({"module": Trap(trap)}, path)


def vouch_for(folder: Path, name: str) -> None:
    """Make the manifest match a changed file, as someone would who forges a checkpoint."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / name
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def saved_twice(packed: str, target: Path) -> None:
    """Resume a run and save it again in another place."""
    from megatron_gptx.checkpoint.load import resume
    from megatron_gptx.checkpoint.save import save
    from megatron_gptx.distributed.process import Process, run_worker
    from megatron_gptx.launcher.command import decode
    from megatron_gptx.training.build import build_engine

    config = decode(packed)

    def work(process: Process) -> None:
        # Other initial weights than the saved ones, so that it shows whether these are loaded.
        other = config.training.model_copy(update={"seed": 5})
        fresh = config.model_copy(update={"training": other})
        engine = build_engine(fresh, process, say=lambda text: None).deepspeed
        state = resume(engine, config=config, say=print)
        assert state is not None
        output = config.output.model_copy(update={"run_dir": str(target)})
        config_there = config.model_copy(update={"output": output})
        save(engine, config=config_there, state=state, writes_weights=True)

    run_worker(work, run_dir=target, launch=LaunchConfig(timeout_seconds=60))


def assert_equal(a: object, b: object) -> None:
    """Compare nested containers of tensors and values."""
    assert type(a) is type(b)
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, str | int | float | bool | None):
        assert a == b


def test_loading_and_saving_gives_the_same_state(corpus, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    config = tiny_config(corpus, first, training__steps=2)
    train(config)
    assert start_ranks(saved_twice, 1, encode(config), second) == [0]
    before, after = newest(first), newest(second)
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
    assert before.manifest["files"].keys() == after.manifest["files"].keys()
    for name, entry in before.manifest["files"].items():
        if name.startswith("weights/"):
            assert after.manifest["files"][name] == entry, name
    states = [torch.load(found.path / ENGINE_FILE, weights_only=True) for found in (before, after)]
    assert states[0]["optimizer"]["state"]
    assert_equal(states[0]["optimizer"], states[1]["optimizer"])


@pytest.mark.parametrize("name", [WEIGHTS_FILE, OPTIMIZER_FILE])
def test_a_flipped_bit_is_named_with_its_file(resumed, name):
    said = resumed(lambda path: flip(path / name))
    assert said.count(f"/{name} has changed since it was saved (its checksum differs)") == 1


def test_every_damaged_file_is_missed_at_once(resumed):
    def change(path: Path) -> None:
        (path / ENGINE_FILE).unlink()
        (path / "engine" / "extra.pt").touch()

    said = resumed(change)
    # Each rank names the first that it meets, and there is one rank.
    assert "is damaged: " in said
    assert "/engine/extra.pt is not in the manifest" in said


def test_a_pickled_object_is_not_even_read(resumed, tmp_path):
    trap = tmp_path / "trap"
    said = resumed(lambda path: set_trap(path / ENGINE_FILE, trap))
    assert f"/{ENGINE_FILE} has " in said
    assert not trap.exists()


@pytest.mark.parametrize("name", [ENGINE_FILE, OPTIMIZER_FILE])
def test_a_pickled_object_that_the_manifest_vouches_for_is_not_executed(resumed, tmp_path, name):
    trap = tmp_path / "trap"

    def forge(path: Path) -> None:
        set_trap(path / name, trap)
        vouch_for(path, name)

    said = resumed(forge)
    assert "holds something else than tensors and was not loaded" in said
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


def test_another_layout_stops_a_run(resumed):
    said = resumed(parallel__zero_stage=0)
    assert "was saved in another layout (zero_stage 1 -> 0); resume with the saved one" in said


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


def test_another_layout_is_refused_with_both_named(corpus, tmp_path):
    one = tiny_config(corpus, tmp_path)
    two = tiny_config(corpus, tmp_path, parallel__pipeline_stages=2)
    checkpoint = Checkpoint(tmp_path / "step-00000002", {"layout": layout_of(two)})
    with pytest.raises(CheckpointError, match=r"pipeline_stages 2 -> 1.*resume with the saved"):
        check_layout(checkpoint, one)
    check_layout(checkpoint, two)


def test_stages_that_are_placed_by_hand_where_they_were_are_the_same_layout(corpus, tmp_path):
    balanced = tiny_config(corpus, tmp_path, parallel__pipeline_stages=2)
    inner = layout_of(balanced)["boundaries"][1:-1]
    by_hand, elsewhere = (
        tiny_config(corpus, tmp_path, parallel__pipeline_stages=2, parallel__boundaries=edges)
        for edges in (inner, [inner[0] + 1])
    )
    checkpoint = Checkpoint(tmp_path / "step-00000002", {"layout": layout_of(balanced)})
    check_layout(checkpoint, by_hand)
    with pytest.raises(CheckpointError, match=r"boundaries \[0, .*\] -> \[0, "):
        check_layout(checkpoint, elsewhere)


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
