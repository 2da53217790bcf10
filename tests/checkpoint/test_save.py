"""A save is visible when it is whole, and old checkpoints go without taking others along."""

import json
import os
import signal
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import lock, newest
from megatron_gptx.checkpoint.names import step_name
from megatron_gptx.checkpoint.prune import delete_oldest, prune
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import CheckpointConfig
from megatron_gptx.launcher.command_line import encode
from tests.checkpoints import write_checkpoint
from tests.runs import start_ranks, tiny_config

# The places of a save at which it can be made to fail, in their order.
PLACES = ["save", "write", "manifest", "rename", "latest", "prune"]


def build(config: Config, process):
    from megatron_gptx.checkpoint.save import Saver
    from megatron_gptx.training.build import build_engine

    engine = build_engine(config, process, say=lambda text: None)
    return Saver(engine.deepspeed, config, replica=engine.replica, say=print)


def counters(step: int) -> dict[str, int]:
    return {"step": step, "samples": 8 * step, "tokens": 256 * step}


def as_rank(packed: str, work: str) -> None:
    """Run a piece of work, named below, as one rank of a configuration."""
    from megatron_gptx.distributed.process import run_worker
    from megatron_gptx.launcher.command_line import decode

    config = decode(packed)
    run_dir = Path(config.output.run_dir)
    run_worker(
        lambda p: globals()[work](config, p),
        run_dir=run_dir,
        launch=LaunchConfig(timeout_seconds=60),
    )


def break_at_every_place(config: Config, process) -> None:
    """Save step 1, then break off the saving of step 2 at each place, and note what is newest."""
    from megatron_gptx.distributed.fault_injection import InjectedError

    saver, seen = build(config, process), []
    saver.save(counters(1), last=True)
    for place in PLACES:
        os.environ["GPTX_FAULT"] = f"error:at={place}"
        try:
            saver.save(counters(2), last=True)
        except InjectedError:
            found = newest(config.output.run_dir)
            assert found is not None
            seen.append((place, found.step))
        del os.environ["GPTX_FAULT"]
        saver.lock.close()
        saver = build(config, process)
    saver.save(counters(3), last=True)
    Path(config.output.run_dir, "seen.json").write_text(json.dumps(seen))


def break_between_two_of_one_step(config: Config, process) -> None:
    """Save a step again, break off where neither is in its place, and save it once more."""
    from megatron_gptx.distributed.fault_injection import InjectedError

    first, second = counters(1), {**counters(1), "samples": 99}
    saver, seen = build(config, process), []

    def note() -> None:
        found = newest(config.output.run_dir)
        assert found is not None
        assert damage(found, all_names(found)) is None
        seen.append((found.path.name, found.manifest["state"]["samples"]))

    saver.save(first, last=True)
    os.environ["GPTX_FAULT"] = "error:at=replace"
    with pytest.raises(InjectedError):
        saver.save(second, last=True)
    del os.environ["GPTX_FAULT"]
    note()
    saver.lock.close()
    saver = build(config, process)
    note()
    saver.save(second, last=True)
    note()
    Path(config.output.run_dir, "seen.json").write_text(json.dumps(seen))


def kill_one_rank_in_a_save(config: Config, process) -> None:
    saver = build(config, process)
    saver.save(counters(1), last=True)
    os.environ["GPTX_FAULT"] = "kill:at=write:rank=1"
    saver.save(counters(2), last=True)


def save_once(config: Config, process) -> None:
    build(config, process).save(counters(1), last=True)


def save_four_times(config: Config, process) -> None:
    saver = build(config, process)
    for step in (1, 2, 3, 4):
        saver.save(counters(step), last=False)
    saver.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / step_name(step) / "weights").mkdir(parents=True)
        (folder / "latest").write_text(step_name(step))


def kept(keep_last: int | None, **options: object) -> CheckpointConfig:
    return CheckpointConfig.model_validate({"keep_last": keep_last, **options})


def test_a_save_that_breaks_off_leaves_the_checkpoint_before_it(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", checkpoint__keep_last=None)
    assert start_ranks(as_rank, 1, encode(config), "break_at_every_place") == [0]
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    # Only a break after `latest` has been replaced comes too late.
    assert seen == [[place, 2 if place == "prune" else 1] for place in PLACES]
    # What the broken ones left is cleared by the next run.
    folder = tmp_path / "run" / "checkpoints"
    assert names(folder) == [".lock", "latest", "step-00000001", "step-00000002", "step-00000003"]


def test_a_step_that_is_saved_again_is_never_without_a_checkpoint(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run")
    assert start_ranks(as_rank, 1, encode(config), "break_between_two_of_one_step") == [0]
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    name, samples = step_name(1), counters(1)["samples"]
    assert seen == [[f"{name}.replaced", samples], [name, samples], [name, 99]]
    assert names(tmp_path / "run" / "checkpoints") == [".lock", "latest", name]


def test_a_rank_killed_inside_a_save_leaves_the_checkpoint_before_it(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", parallel__pipeline_stages=2)
    statuses = start_ranks(as_rank, 2, encode(config), "kill_one_rank_in_a_save")
    assert statuses[1] == -signal.SIGKILL
    found = newest(tmp_path / "run")
    assert found is not None
    assert found.step == 1
    assert names(tmp_path / "run" / "checkpoints") == [
        ".lock",
        "latest",
        "step-00000001",
        "step-00000002.partial",
    ]


@pytest.mark.parametrize("place", ["write", "manifest", "latest"])
def test_a_last_checkpoint_for_which_there_is_no_space_is_an_error(tmp_path, monkeypatch, place):
    monkeypatch.setenv("GPTX_FAULT", f"full:at={place}")
    config = tiny_config(tmp_path, tmp_path / "run")
    screen = tmp_path / "screen"
    assert start_ranks(as_rank, 1, encode(config), "save_once", screen=screen) == [2]
    assert screen.read_text().count("No space left on device") == 1
    assert newest(tmp_path / "run") is None


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_costs_the_oldest_checkpoint_and_not_the_newest(
    tmp_path, monkeypatch, asynchronous
):
    monkeypatch.setenv("GPTX_FAULT", f"full:at=write:step=3:rank=1:once={tmp_path / 'full'}")
    options = {"parallel__pipeline_stages": 2, "checkpoint__asynchronous": asynchronous}
    options["checkpoint__keep_last"] = None
    config = tiny_config(tmp_path, tmp_path / "run", **options)
    statuses = start_ranks(as_rank, 2, encode(config), "save_four_times")
    assert statuses == [0, 0]
    assert names(tmp_path / "run" / "checkpoints") == [
        ".lock",
        "latest",
        *(step_name(step) for step in (2, 3, 4)),
    ]


def test_asynchronous_checkpoints_are_the_same_bytes(tmp_path):
    contents = []
    for asynchronous in (False, True):
        run_dir = tmp_path / str(asynchronous)
        options = {"parallel__pipeline_stages": 2, "checkpoint__asynchronous": asynchronous}
        config = tiny_config(tmp_path, run_dir, **options)
        assert start_ranks(as_rank, 2, encode(config), "save_four_times") == [0, 0]
        found = newest(run_dir)
        assert found is not None
        contents.append((found.step, found.manifest["files"]))
    assert contents[0] == contents[1]
    assert contents[0][0] == 4


def test_two_runs_cannot_share_a_folder(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run")
    held = lock(tmp_path / "run" / "checkpoints")
    screen = tmp_path / "screen"
    assert start_ranks(as_rank, 1, encode(config), "save_once", screen=screen) == [2]
    assert "run/checkpoints is in use by another run" in screen.read_text()
    held.close()


@pytest.mark.parametrize(
    ("keep_last", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (None, [1, 2, 3, 4])]
)
def test_the_last_checkpoints_are_kept(tmp_path, keep_last, left):
    make_checkpoints(tmp_path, 1, 2, 3, 4)
    prune(tmp_path, newest=tmp_path / step_name(4), options=kept(keep_last))
    assert names(tmp_path) == ["latest", *(step_name(step) for step in left)]


def test_chosen_checkpoints_are_kept_for_ever(tmp_path):
    make_checkpoints(tmp_path, 10, 15, 20, 25, 30, 35)
    options = kept(1, keep_every=20, keep_steps=[15])
    deleted = prune(tmp_path, newest=tmp_path / step_name(35), options=options)
    assert [path.name for path in deleted] == [step_name(step) for step in (10, 25, 30)]
    assert names(tmp_path) == ["latest", *(step_name(step) for step in (15, 20, 35))]


def test_the_checkpoint_that_latest_names_is_never_the_oldest(tmp_path):
    make_checkpoints(tmp_path, 20, 30, 10)
    assert delete_oldest(tmp_path, kept(1)) == tmp_path / step_name(20)
    assert delete_oldest(tmp_path, kept(1)) == tmp_path / step_name(30)
    assert delete_oldest(tmp_path, kept(1)) is None
    assert names(tmp_path) == ["latest", step_name(10)]


def test_what_bad_steps_lead_back_to_is_deleted_by_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    harmed = write_checkpoint(tmp_path, 4, guard={"in_a_row": 1, "return_to": 2})
    (folder / "latest").write_text(harmed.name)
    assert prune(folder, newest=harmed, options=kept(1)) == [folder / step_name(s) for s in (1, 3)]
    assert delete_oldest(folder, kept(1)) is None
    assert names(folder) == ["latest", step_name(2), step_name(4)]


def test_a_checkpoint_saved_amid_bad_steps_is_none_of_the_last_ones(tmp_path):
    folder = tmp_path / "checkpoints"
    write_checkpoint(tmp_path, 24)
    write_checkpoint(tmp_path, 30, guard={"in_a_row": 1, "return_to": 24})
    newest = write_checkpoint(tmp_path, 32)
    (folder / "latest").write_text(newest.name)
    assert prune(folder, newest=newest, options=kept(2)) == [folder / step_name(30)]
    assert names(folder) == ["latest", step_name(24), step_name(32)]


def test_after_going_back_the_new_checkpoint_is_never_the_one_deleted(tmp_path):
    make_checkpoints(tmp_path, 10, 12, 15, 20)
    prune(tmp_path, newest=tmp_path / step_name(12), options=kept(1))
    assert names(tmp_path) == ["latest", *(step_name(step) for step in (12, 15, 20))]


def test_only_checkpoints_are_deleted(tmp_path):
    make_checkpoints(tmp_path / "run", 1, 2)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").touch()
    (tmp_path / "run" / "step-00000000").symlink_to(tmp_path / "precious")
    for name in ("step-1", "step-best", "step-00000001.keep", "notes"):
        (tmp_path / "run" / name).mkdir()
    prune(tmp_path / "run", newest=tmp_path / "run" / step_name(2), options=kept(1))
    assert (tmp_path / "precious" / "thesis").exists()
    assert {"step-1", "step-best", "step-00000001.keep", "notes", step_name(2)} <= set(
        names(tmp_path / "run")
    )
    assert step_name(1) not in names(tmp_path / "run")
