"""A save is visible when it is whole, and old checkpoints go without taking others along."""

import json
import os
import signal
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.layout import newest, step_name
from megatron_gptx.checkpoint.save import prune
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.command import encode
from tests.runs import start_ranks, tiny_config

# The parts of a save in their order, each a function that `save` calls.
PARTS = ["save_layers", "_hash_and_sync", "write_synced", "sync_folder", "prune"]


class CrashError(Exception):
    """What stands for a crash inside a save."""


def build(config: Config, process):
    from megatron_gptx.training.build import build_engine

    return build_engine(config, process, say=lambda text: None).deepspeed


def save_step(engine, config: Config, step: int) -> Path:
    from megatron_gptx.checkpoint.save import save

    return save(engine, config=config, state={"step": step}, writes_weights=True)


def as_rank(packed: str, work: str) -> None:
    """Run a piece of work, named below, as one rank of a configuration."""
    from megatron_gptx.distributed.process import run_worker
    from megatron_gptx.launcher.command import decode

    config = decode(packed)
    run_dir = Path(config.output.run_dir)
    run_worker(
        lambda p: globals()[work](config, p),
        run_dir=run_dir,
        launch=LaunchConfig(timeout_seconds=60),
    )


def break_at_every_part(config: Config, process) -> None:
    """Save step 1, then break off the saving of step 2 at each part, and note what is newest."""
    from megatron_gptx.checkpoint import save as module

    engine, seen = build(config, process), []
    save_step(engine, config, 1)
    for part in PARTS:
        whole, calls = getattr(module, part), []

        def broken(*args, part=part, whole=whole, calls=calls, **kwargs):
            calls.append(args)
            # The last of the written files is `latest`; the last synced folder comes before it.
            if len(calls) == {"write_synced": 2, "sync_folder": 4}.get(part, 1):
                raise CrashError(part)
            return whole(*args, **kwargs)

        setattr(module, part, broken)
        try:
            save_step(engine, config, 2)
        except CrashError:
            found = newest(config.output.run_dir)
            assert found is not None
            seen.append((part, found.step))
        setattr(module, part, whole)
    save_step(engine, config, 3)
    Path(config.output.run_dir, "seen.json").write_text(json.dumps(seen))


def kill_one_rank_in_a_save(config: Config, process) -> None:
    from megatron_gptx.checkpoint import save as module

    engine = build(config, process)
    save_step(engine, config, 1)
    if process.rank == 1:
        module.save_layers = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
    save_step(engine, config, 2)


def fill_the_disk(config: Config, process) -> None:
    from megatron_gptx.checkpoint import save as module

    def no_space(path: Path) -> str:
        raise OSError(28, "No space left on device", str(path))

    engine = build(config, process)
    module.checksum = no_space
    save_step(engine, config, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / step_name(step) / "weights").mkdir(parents=True)


def test_a_save_that_breaks_off_leaves_the_checkpoint_before_it(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", checkpoint__keep_last=None)
    assert start_ranks(as_rank, 1, encode(config), "break_at_every_part") == [0]
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    # Only a break after `latest` has been replaced comes too late.
    assert seen == [[part, 2 if part == "prune" else 1] for part in PARTS]
    # What the broken ones left is cleared by the next one.
    folder = tmp_path / "run" / "checkpoints"
    assert names(folder) == ["latest", "step-00000001", "step-00000002", "step-00000003"]


def test_a_rank_killed_inside_a_save_leaves_the_checkpoint_before_it(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", parallel__pipeline_stages=2)
    statuses = start_ranks(as_rank, 2, encode(config), "kill_one_rank_in_a_save")
    assert statuses[1] == -signal.SIGKILL
    found = newest(tmp_path / "run")
    assert found is not None
    assert found.step == 1
    assert names(tmp_path / "run" / "checkpoints") == [
        "latest",
        "step-00000001",
        "step-00000002.partial",
    ]


def test_a_full_disk_is_a_message(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run")
    screen = tmp_path / "screen"
    assert start_ranks(as_rank, 1, encode(config), "fill_the_disk", screen=screen) == [2]
    assert screen.read_text().count("No space left on device") == 1
    assert newest(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("keep_last", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (None, [1, 2, 3, 4])]
)
def test_the_last_checkpoints_are_kept(tmp_path, keep_last, kept):
    make_checkpoints(tmp_path, 1, 2, 3, 4)
    prune(tmp_path, newest=tmp_path / step_name(4), keep_last=keep_last)
    assert names(tmp_path) == [step_name(step) for step in kept]


def test_after_going_back_the_new_checkpoint_is_never_the_one_deleted(tmp_path):
    make_checkpoints(tmp_path, 10, 12, 15, 20)
    prune(tmp_path, newest=tmp_path / step_name(12), keep_last=1)
    assert names(tmp_path) == [step_name(step) for step in (12, 15, 20)]


def test_only_checkpoints_are_deleted(tmp_path):
    make_checkpoints(tmp_path / "run", 1, 2)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").touch()
    (tmp_path / "run" / "step-00000000").symlink_to(tmp_path / "precious")
    for name in ("step-1", "step-best", "step-00000001.keep", "notes"):
        (tmp_path / "run" / name).mkdir()
    prune(tmp_path / "run", newest=tmp_path / "run" / step_name(2), keep_last=1)
    assert (tmp_path / "precious" / "thesis").exists()
    assert {"step-1", "step-best", "step-00000001.keep", "notes", step_name(2)} <= set(
        names(tmp_path / "run")
    )
    assert step_name(1) not in names(tmp_path / "run")
