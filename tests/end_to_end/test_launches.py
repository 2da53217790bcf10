"""What a person sees and keeps who types `./deepy.py`, and what is left when things go wrong."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_gptx.config.load import load
from tests.launches import Launch, Place, has_rows, wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    yield place
    place.clear()


def launch_in_a_row(place: Place, count: int) -> list[Launch]:
    """Train, and resume for a step more each time; fail where anything is left behind."""
    done = [
        place.launch("train.py", "--set", f"training.steps={3 + number}") for number in range(count)
    ]
    assert place.left() == [], f"after {count} launches"
    assert [launch.status for launch in done] == [0] * count
    assert [launch.said for launch in done] == [""] * count
    return done


@pytest.fixture(scope="module")
def launches(place) -> list[Launch]:
    """Launch twice; what these leave and say serves many tests, for each takes seconds."""
    return launch_in_a_row(place, 2)


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.extended)])
def test_launches_in_a_row_leave_no_process_and_no_shared_memory(launches, tmp_path, count):
    if count > len(launches):
        launch_in_a_row(Place(tmp_path), count)


def test_a_launch_shows_the_plan_the_progress_and_nothing_of_deepspeeds(launches, place):
    shown = launches[0].shown
    assert "2 stages x 1 replica = 2 processes" in shown
    assert "starting 2 rank(s), on the CPU" in shown
    assert "step 3/3  loss " in shown
    assert f"step 3: saved {place.folder}/run/checkpoints/step-00000003" in shown
    for chatter in ("[INFO]", "[WARNING]", "topology", "Warning:"):
        assert chatter not in shown
    assert "topology" in (place.folder / "run" / "logs" / "rank-0.log").read_text()


def test_a_launch_after_the_first_resumes(launches):
    assert "resumed at step 3" in launches[1].shown


def test_the_run_folder_holds_all_that_is_needed_to_understand_the_run(launches, place):
    run = place.folder / "run"
    last = 2 + len(launches)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert (run / "checkpoints" / "latest").read_text() == f"step-{last:08d}\n"
    assert {path.name for path in (run / "logs").iterdir()} == {
        ".lock",
        "rank-0.log",
        "rank-1.log",
        ".finished",
    }
    written = load([run / "config.yml"])
    meant = load([place.config_file], [f"training.steps={last}"])
    assert written == meant


def test_a_mistake_that_ranks_find_is_one_message_and_not_made_again(launches, place):
    (place.folder / "run" / "logs" / ".failed").touch()
    again = ("--set", "launch.max_restarts=3")
    launch = place.launch("train.py", "--set", "checkpoint.upload=nosuch://bucket", *again)
    assert launch.status == 2
    assert "restart 1" not in launch.shown
    both = launch.shown + launch.said
    assert both.count("checkpoint.upload: nosuch://bucket cannot be used") == 1
    assert both.count("error") == 1
    assert "Traceback" not in both
    assert place.is_empty()


def test_a_checkpoint_of_another_model_is_found_before_a_rank_starts(launches, place):
    launch = place.launch("train.py", "--set", "model.hidden_size=64")
    assert (launch.status, launch.shown) == (2, "")
    assert "model.hidden_size: is 64, but the model in " in launch.said


MISTAKES = {
    "a misspelt option": (
        ["train.py", "--set", "model.hiden_size=3"],
        "model.hiden_size: unknown key; did you mean 'hidden_size'?",
    ),
    "a missing dataset": (
        ["train.py", "--set", "data.train=nowhere"],
        "nowhere.idx: no such file",
    ),
    "generation without a tokenizer": (
        ["generate.py", "--prompt", "two words"],
        "data.tokenizer is not set",
    ),
    "evaluation without a checkpoint": (
        ["evaluate.py", "--set", "output.run_dir=empty"],
        "empty holds no checkpoint yet",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_nothing_else(place, mistake):
    (script, *words), message = MISTAKES[mistake]
    launch = place.launch(script, *words)
    assert (launch.status, launch.shown.count("starting")) == (2, 0)
    assert launch.said.count(message) == 1
    assert "Traceback" not in launch.said


def test_without_words_there_is_help(place):
    process = place.start()
    shown, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "")
    assert shown.startswith("usage: ./deepy.py SCRIPT CONFIG")


@pytest.fixture
def endless(place, tmp_path) -> Callable[[], tuple[subprocess.Popen[str], Path]]:
    """Start a run that only ends when it is made to; return it and its folder."""

    def endless() -> tuple[subprocess.Popen[str], Path]:
        run_dir = tmp_path / "run"
        words = [f"output.run_dir={run_dir}", "training.steps=1000000"]
        options = [part for word in words for part in ("--set", word)]
        return place.start("train.py", "tiny.yml", *options), run_dir

    return endless


def test_a_killed_rank_ends_the_run_with_one_message(place, endless):
    process, run_dir = endless()
    wait_for(has_rows(run_dir / "metrics.jsonl"))
    (rank,) = place.processes("RANK=1")
    os.kill(rank, signal.SIGKILL)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert said == (
        "error: a process of this run was ended by SIGKILL; the machine may have run out of "
        f"memory (logs: {run_dir}/logs)\n"
    )
    assert "error" not in shown
    assert place.is_empty()


# The ordinary suite kills them in faults/test_chaos.py.
@pytest.mark.extended
@pytest.mark.parametrize("moment", ["their launcher starts", "ranks start", "ranks have met"])
def test_a_killed_launcher_leaves_no_process(place, endless, moment):
    process, run_dir = endless()
    wait_for(
        {
            "their launcher starts": lambda: len(place.processes()) == 2,
            "ranks start": lambda: place.processes("RANK=1"),
            "ranks have met": (run_dir / "logs" / "rank-1.log").exists,
        }[moment]
    )
    process.kill()
    process.communicate(timeout=60)
    wait_for(place.is_empty)


@pytest.mark.extended
def test_a_killed_launcher_of_a_node_leaves_no_process(place, endless):
    process, run_dir = endless()
    wait_for((run_dir / "logs" / "rank-1.log").exists)
    (launcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(launcher), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert said.count("ended by SIGKILL") == 1
    wait_for(place.is_empty)
