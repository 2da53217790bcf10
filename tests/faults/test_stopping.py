"""A run that is asked to stop finishes its step, saves, and says so, whoever is asked and when."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from megatron_gptx.checkpoint.integrity import damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.names import checkpoint_folder
from megatron_gptx.distributed.exit_status import INTERRUPTED, MISTAKE, STOPPED
from tests.launches import ROOT, Place, has_rows, wait_for

# A launch takes seconds: the ordinary suite has one for each way that a request takes. Which signal
# means what is proved without launches, of ranks in training/test_stop.py, of the launcher in
# launcher/test_ranks.py.
extended = pytest.mark.extended


class Run:
    """A run that would go on for a long time."""

    def __init__(
        self, place: Place, run_dir: Path, *options: str, config: str | Path = "tiny.yml"
    ) -> None:
        self.place, self.run_dir = place, run_dir
        words = ("training.steps=100000", f"output.run_dir={run_dir}", *options)
        sets = [part for word in words for part in ("--set", word)]
        self.launcher = place.start("train.py", str(config), *sets)

    @property
    def trains(self) -> Callable[[], bool]:
        return has_rows(self.run_dir / "metrics.jsonl")

    def node(self) -> int:
        """Return the process that starts the ranks."""
        pid = self.launcher.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def rank(self, number: int) -> int:
        (pid,) = self.place.processes(f"RANK={number}")
        return pid

    def end(self, *, seconds: float = 120) -> tuple[int, str, str]:
        """Return the status, what is shown and what is said, once nothing of the run is left.

        Fails where the launcher takes longer than so many seconds.
        """
        shown, said = self.launcher.communicate(timeout=seconds)
        wait_for(self.place.is_empty, seconds=5)
        return self.launcher.returncode, shown, said

    def assert_stopped(self, reason: str, *, seconds: float = 120) -> None:
        """Fail unless the run ended as asked, with its last step in a whole checkpoint."""
        status, shown, said = self.end(seconds=seconds)
        assert (status, said) == (STOPPED, ""), shown + said
        checkpoint = newest(self.run_dir)
        assert checkpoint is not None
        assert damage(checkpoint, checkpoint.manifest["files"]) is None
        assert shown.count("stopped by") == 1
        assert shown.endswith(
            f"stopped by {reason} at step {checkpoint.step}; saved {checkpoint.path}; run the same "
            "command to go on\n"
        )
        last = (self.run_dir / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == checkpoint.step

    def assert_stopped_before_a_step(self, reason: str) -> None:
        status, shown, said = self.end()
        assert (status, said) == (STOPPED, ""), shown + said
        assert re.search(
            rf"stopped by {reason} before (a step|any rank) was (taken|started)", shown
        )
        assert not checkpoint_folder(self.run_dir).exists()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    yield place
    place.clear()


@pytest.fixture
def run(place, tmp_path) -> Iterator[Callable[..., Run]]:
    yield lambda *options, **where: Run(place, tmp_path / "run", *options, **where)
    place.clear()


@extended
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_launcher_saves_the_step_and_ends_with_75(run, signum):
    started = run()
    wait_for(started.trains)
    started.launcher.send_signal(signum)
    started.assert_stopped(signum.name)


@pytest.mark.parametrize(
    "whose",
    [*(pytest.param(whose, marks=extended) for whose in ("node", "rank 0", "all")), "rank 1"],
)
def test_a_signal_to_any_process_of_a_run_saves_the_step_and_ends_with_75(run, whose):
    started = run()
    wait_for(started.trains)
    processes = {
        "node": lambda: [started.node()],
        "rank 0": lambda: [started.rank(0)],
        "rank 1": lambda: [started.rank(1)],
        "all": lambda: started.place.processes(),
    }[whose]()
    for pid in processes:
        os.kill(pid, signal.SIGTERM)
    started.assert_stopped("SIGTERM")


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=extended), signal.SIGHUP])
def test_a_run_that_nobody_watches_any_more_loses_nothing(run, signum):
    """As after Ctrl-C with `| tee`, after `| head`, and where the terminal is closed."""
    started = run("evaluation.interval=2")
    wait_for(started.trains)
    for stream in (started.launcher.stdout, started.launcher.stderr):
        stream.close()
    rows = started.run_dir / "metrics.jsonl"
    before = len(rows.read_text().splitlines())
    wait_for(lambda: len(rows.read_text().splitlines()) > before + 2)
    started.launcher.send_signal(signum)
    assert started.launcher.wait(timeout=120) == STOPPED
    wait_for(started.place.is_empty, seconds=5)
    assert newest(started.run_dir).step == json.loads(rows.read_text().splitlines()[-1])["step"]


@extended
@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_that_deepspeed_does_not_know_may_go_to_every_process(run, signum):
    started = run()
    wait_for(started.trains)
    for pid in started.place.processes():
        os.kill(pid, signum)
    started.assert_stopped(signum.name)


@extended
def test_a_second_launch_in_the_folder_of_a_run_is_refused_and_does_it_no_harm(run, place):
    first = run()
    wait_for(first.trains)
    second = Run(place, first.run_dir)
    _, said = second.launcher.communicate(timeout=60)
    assert second.launcher.returncode == MISTAKE
    assert f"in use by another launch (process {first.launcher.pid} of" in said
    for pid in place.processes():
        os.kill(pid, signal.SIGTERM)
    first.assert_stopped("SIGTERM")


def test_a_stopped_run_goes_on_with_the_same_command_until_a_file_in_its_folder_stops_it(run):
    first = run()
    wait_for(first.trains)
    first.launcher.terminate()
    first.assert_stopped("SIGTERM")
    step = newest(first.run_dir).step
    second = run()
    wait_for(lambda: len((first.run_dir / "metrics.jsonl").read_text().splitlines()) > step)
    (second.run_dir / "logs" / ".stop").touch()
    second.assert_stopped("logs/.stop")
    rows = [json.loads(line) for line in (first.run_dir / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    "moment",
    [
        *(
            pytest.param(each, marks=extended)
            for each in ("the launcher works", "its child starts")
        ),
        "ranks start",
    ],
)
def test_a_signal_before_the_first_step_ends_the_run_with_75_and_without_damage(run, moment):
    started = run()
    wait_for(
        {
            "the launcher works": lambda: handles(started.launcher, signal.SIGTERM),
            "its child starts": lambda: len(started.place.processes()) == 2,
            "ranks start": lambda: started.place.processes("RANK=1"),
        }[moment]
    )
    started.launcher.terminate()
    started.assert_stopped_before_a_step("SIGTERM")


@extended
def test_a_time_limit_stops_a_run(run):
    run("training.time_limit_minutes=0.02").assert_stopped_before_a_step(
        "training.time_limit_minutes"
    )


@extended
def test_a_second_ctrl_c_ends_a_run_at_once(run):
    started = run()
    wait_for(started.trains)
    os.kill(started.rank(1), signal.SIGSTOP)  # so that the first one cannot end it
    started.launcher.send_signal(signal.SIGINT)
    wait_for((started.run_dir / "logs" / ".stop").exists)
    started.launcher.send_signal(signal.SIGINT)
    status, _, said = started.end()
    assert (status, said) == (INTERRUPTED, "")


def moments() -> list[tuple[str, float]]:
    """Return when signals strike: seconds after the launcher's start, or after the first step."""
    random = Random(5)
    return [
        ("start", random.uniform(0, 6)) if number % 3 == 0 else ("step", random.uniform(0, 2.5))
        for number in range(20)
    ]


class Model(NamedTuple):
    """What is trained, and how long it may take from a signal to the end."""

    config: str | Path
    limit_seconds: float
    options: Callable[[Path], list[str]] = lambda folder: []


MODELS = {
    "tiny": Model("tiny.yml", 120),  # on busy machines, too
    "quickstart": Model(
        ROOT / "configs" / "quickstart.yml",
        10,
        lambda folder: [
            *(f"data.{part}={folder / part}" for part in ("train", "valid")),
            *("data.tokenizer=null", "launch.device=cpu"),
        ],
    ),
}


@pytest.mark.parametrize(
    ("model", "since", "seconds"),
    [
        *(("tiny", *moment) for moment in moments()[:2]),
        *(pytest.param("tiny", *moment, marks=extended) for moment in moments()[2:4]),
        *(pytest.param("quickstart", *moment, marks=extended) for moment in moments()),
    ],
)
def test_a_signal_at_any_moment_leaves_a_whole_checkpoint_and_no_process(
    run, place, model, since, seconds
):
    """Steps, evaluations and saves take turns, each about as long as the others together."""
    stages = 1 + (seconds > 1)
    often = ("checkpoint.interval=4", "evaluation.interval=4", "evaluation.batches=10")
    layout = (f"parallel.pipeline_stages={stages}", f"parallel.data_replicas={3 - stages}")
    config, limit_seconds, options = MODELS[model]
    started = run(*often, *layout, *options(place.folder), config=config)
    wait_for(lambda: handles(started.launcher, signal.SIGTERM))
    if since == "step":
        wait_for(started.trains)
    time.sleep(seconds)
    started.launcher.terminate()
    if (started.run_dir / "metrics.jsonl").exists():
        started.assert_stopped("SIGTERM", seconds=limit_seconds)
    else:
        status, shown, said = started.end(seconds=limit_seconds)
        assert (status, said) == (STOPPED, ""), shown + said
        assert "stopped by SIGTERM" in shown
        checkpoint = newest(started.run_dir)
        assert checkpoint is None or damage(checkpoint, checkpoint.manifest["files"]) is None


def handles(process: subprocess.Popen[str], signum: int) -> bool:
    """Return whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(caught and int(caught[1], 16) >> (signum - 1) & 1)
