"""A full disk costs what has no room there, and nothing else."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.integrity import damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.distributed.exit_status import MISTAKE, STOPPED
from tests.launches import Place, has_rows, wait_for


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    place = Place(tmp_path, logging__tensorboard=True)
    yield place
    place.clear()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A run folder on a disk of its own, of 2 MiB."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a disk; return the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 12, 1 << 8, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    "room",
    [
        "later",
        *(pytest.param(room, marks=pytest.mark.extended) for room in ("for checkpoints", "never")),
    ],
)
def test_a_run_goes_on_beside_a_full_disk_and_saves_where_there_is_room(place, small_disk, room):
    if room == "for checkpoints":
        (place.folder / "elsewhere").mkdir()
        (small_disk / "checkpoints").symlink_to(place.folder / "elsewhere")
    options = ("training.steps=100000", "evaluation.interval=5", "checkpoint.interval=100000")
    sets = [part for option in options for part in ("--set", option)]
    process = place.start("train.py", "tiny.yml", *sets)
    wait_for(has_rows(small_disk / "metrics.jsonl"))
    filler = fill(small_disk)
    lines = iter(process.stdout.readline, "")
    full = next(line for line in lines if "no space left for" in line)
    assert full == f"no space left for {small_disk}/metrics.jsonl: its rows wait until there is\n"
    # It trains on: two more evaluations.
    for _ in range(2):
        next(line for line in lines if "validation loss" in line)
    if room == "later":
        filler.unlink()
    process.terminate()
    shown, said = process.communicate(timeout=120)
    if room == "never":
        assert process.returncode == MISTAKE, shown + said
        assert "no space left" in shown + said
        return
    assert process.returncode == STOPPED, shown + said
    checkpoint = newest(small_disk)
    assert damage(checkpoint, checkpoint.manifest["files"]) is None
    if room == "later":
        assert steps(small_disk) == list(range(1, checkpoint.step + 1))
    else:
        assert "metrics.jsonl lacks its last" in shown
        assert steps(small_disk) == list(range(1, len(steps(small_disk)) + 1))
