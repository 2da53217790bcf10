"""Ranks that crash or hang are started again, and nothing of the run is different for it.

What the launcher does about the end of ranks is proved without launches in launcher/test_ranks.py.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_gptx.distributed.exit_status import FINISHED, MISTAKE, STOPPED
from tests.checkpoints import flip
from tests.launches import Launch, Place, wait_for
from tests.runs import losses, tiny_config, train

OPTIONS = {"training__steps": 7, "checkpoint__interval": 2, "model__dropout": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"), **OPTIONS)
    yield place
    place.clear()


def launch(
    place: Place, run_dir: Path, restarts: int, fault: str, *words: str, **variables: str
) -> Launch:
    options = [f"output.run_dir={run_dir}", f"launch.max_restarts={restarts}"]
    sets = [part for option in options for part in ("--set", option)]
    done = place.launch("train.py", *sets, *words, GPTX_FAULT=fault, **variables)
    assert place.is_empty()
    return done


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(place, tmp_path_factory) -> list[float]:
    """Return the losses of a run that needs no launcher."""
    options = {"parallel__pipeline_stages": 2, **OPTIONS}
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    return losses(train(tiny_config(place.folder, run_dir, **options)))


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_a_killed_rank_is_started_again_and_every_loss_is_the_same(
    place, tmp_path, uninterrupted, kills
):
    """One kill comes before the first checkpoint, another one after it."""
    early = f"kill:at=step:rank=1:step=1:once={tmp_path}/early"
    late = f"kill:at=step:rank=0:step>=5:once={tmp_path}/late"
    done = launch(place, tmp_path / "run", kills, " ".join([early, late][:kills]))
    assert done.status == FINISHED, done.shown + done.said
    again = "after status 137: the ranks go on from the newest intact checkpoint"
    for restart in range(1, kills + 1):
        assert f"restart {restart} of {kills} {again}" in done.shown
    assert done.said.count("error: a process of this run was ended by SIGKILL") == kills
    assert ("resumed at step 4" in done.shown) == (kills == 2)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 8))
    assert losses(rows(tmp_path / "run")) == uninterrupted


@pytest.mark.extended
def test_a_run_that_began_afresh_goes_on_from_its_own_checkpoints(place, tmp_path, uninterrupted):
    fresh, run_dir = ("--set", "checkpoint.start=fresh"), tmp_path / "run"
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    program.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    # It crashes at its fifth step, and is stopped at its sixth.
    kill = f"kill:at=step:rank=1:step=4:once={tmp_path}/it"
    stop = " ".join(["term:at=step:rank=0:step=5", *["slow:at=step:rank=0:step=5"] * 10])
    first = launch(place, run_dir, 1, f"{kill} {stop}", *fresh, "--requeue", **slurm)
    assert first.status == STOPPED, first.shown + first.said
    assert "restart 1 of 1 after status 137" in first.shown
    assert "resumed at step 4" in first.shown
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    count = {"SLURM_RESTART_COUNT": "1"}
    second = launch(place, run_dir, 0, "", *fresh, "--requeue", **slurm, **count)
    assert second.status == FINISHED, second.shown + second.said
    assert "resumed at step 6" in second.shown
    assert losses(rows(run_dir)) == uninterrupted
    # Another job finds checkpoints that are not its own.
    for words in ((), ("--requeue",)):
        other = launch(place, run_dir, 1, "", *fresh, *words, **slurm)
        assert other.status == MISTAKE
        assert "checkpoint.start: is 'fresh', but " in other.said
        assert "restart" not in other.shown


@pytest.mark.extended
def test_a_stopped_run_that_began_afresh_says_how_to_go_on(place, tmp_path):
    stop = " ".join(["term:at=step:rank=0:step=1", *["slow:at=step:rank=0:step=1"] * 10])
    done = launch(place, tmp_path / "run", 0, stop, "--set", "checkpoint.start=fresh")
    assert done.status == STOPPED
    assert done.shown.endswith(
        "run the same command to go on\nbut with --set checkpoint.start=auto: 'fresh' refuses "
        "every checkpoint, this run's too\n"
    )


def test_a_restart_passes_over_a_checkpoint_that_is_damaged(place, tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    damaged = run_dir / "checkpoints" / "step-00000004"

    def damage() -> None:
        wait_for((run_dir / "metrics.jsonl").exists)
        wait_for(lambda: (run_dir / "checkpoints" / "latest").read_text() == f"{damaged.name}\n")
        flip(damaged / "weights" / "layer-001.safetensors")

    # Half a second before the step that fails, in which the damage is done.
    slow = " ".join(["slow:at=step:step=4:rank=0"] * 10)
    with ThreadPoolExecutor(1) as pool:
        done_damage = pool.submit(damage)
        kill = f"kill:at=step:step=5:rank=1:once={tmp_path}/it"
        done = launch(place, run_dir, 1, f"{slow} {kill}")
        done_damage.result()
    assert done.status == FINISHED, done.shown + done.said
    assert f"passed over: {damaged} is damaged: " in done.shown
    assert "resumed at step 2" in done.shown
    assert losses(rows(run_dir)) == uninterrupted


@pytest.mark.extended
def test_an_error_is_told_before_the_ranks_are_started_again(place, tmp_path, uninterrupted):
    done = launch(place, tmp_path / "run", 1, f"error:at=step:rank=1:step>=3:once={tmp_path}/it")
    assert done.status == FINISHED
    assert done.shown.count("error on rank 1 (traceback in ") == 1
    assert done.shown.index("error on rank 1") < done.shown.index("restart 1 of 1 after status 1:")
    assert losses(rows(tmp_path / "run")) == uninterrupted


@pytest.mark.extended
def test_ranks_are_not_started_more_often_than_allowed(place, tmp_path):
    done = launch(place, tmp_path / "run", 1, "kill:at=step:rank=1:step>=3")
    assert done.status == 137
    assert done.shown.count("restart 1 of 1") == 1
    assert len(rows(tmp_path / "run")) == 3


@pytest.mark.extended
def test_without_restarts_a_crash_is_the_end(place, tmp_path):
    done = launch(place, tmp_path / "run", 0, "kill:at=step:rank=1")
    assert done.status == 137
    assert "restart 1" not in done.shown
