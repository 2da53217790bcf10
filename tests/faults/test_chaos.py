"""Whatever is killed, and whenever: the run goes on, and its losses are those of one without kills.

The ordinary suite kills each process of one layout once, the extended one a hundred times in three.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest
from tests.launches import Place, wait_for
from tests.runs import losses, tiny_config, train

INTERVAL = 5
LAYOUTS: dict[str, dict[str, Any]] = {
    "PP 2": {"parallel__pipeline_stages": 2},
    "DP 2": {
        "parallel__pipeline_stages": 1,
        "parallel__data_replicas": 2,
        "parallel__zero_stage": 1,
    },
    "PP 2 x DP 2": {
        "parallel__pipeline_stages": 2,
        "parallel__data_replicas": 2,
        "parallel__zero_stage": 1,
    },
}
# Of a hundred in all.
KILLS = {"PP 2": 40, "DP 2": 40, "PP 2 x DP 2": 20}
# Where a save can be hit; rank 0 alone goes through the last four.
PLACES = ("save", "write", "manifest", "rename", "latest", "prune")
VICTIMS = ("rank", "rank", "node", "launcher")


class Kill(NamedTuple):
    """A SIGKILL: at a place of the save protocol, or so many seconds after the start."""

    victim: str
    rank: int
    place: str | None
    seconds: float
    asynchronous: bool


def plan(random: Random, count: int, ranks: int) -> list[Kill]:
    """Return kills, half of them aimed, every place in turn."""
    kills = []
    for number in range(count):
        place = PLACES[number // 2 % len(PLACES)] if number % 2 == 0 else None
        rank = random.randrange(ranks) if place in ("save", "write", None) else 0
        victim = random.choice(VICTIMS)
        kills.append(Kill(victim, rank, place, random.uniform(0, 12), random.random() < 0.5))
    random.shuffle(kills)
    return kills


class Chaos:
    """A run in one layout that is killed again and again."""

    def __init__(self, folder: Path, layout: str, num_kills: int) -> None:
        self.options = LAYOUTS[layout]
        self.ranks = 4 if "x" in layout else 2
        self.random = Random(f"chaos {layout}")
        self.num_kills = num_kills
        self.run_dir = folder / "run"
        # Some steps between two kills, and more than all kills can use up.
        self.steps = 40 + 12 * num_kills
        self.options = {
            **self.options,
            "training__steps": self.steps,
            "checkpoint__interval": INTERVAL,
            "evaluation__interval": 7,
            "evaluation__batches": 1,
        }
        self.place = Place(folder, **self.options)
        self.temporary = folder / "temporary"
        self.temporary.mkdir()

    def step(self) -> int:
        """Return the step that a resume starts from; its checkpoint must be whole."""
        found = newest(self.run_dir)
        if found is None:
            return 0
        assert damage(found, all_names(found)) is None
        return found.step

    def start(self, fault: str = "", *words: str):
        sets = [part for word in words for part in ("--set", word)]
        variables = {"GPTX_FAULT": fault, "TMPDIR": str(self.temporary)}
        return self.place.start("train.py", "tiny.yml", *sets, **variables)

    def suffer(self, kill: Kill) -> bool:
        """Run until a kill ends it; return whether it came before the end of the run."""
        fault = ""
        if kill.place is not None:
            step = self.step() + self.random.choice((1, INTERVAL + 1))
            who = f"who={kill.victim}"
            fault = f"kill:at={kill.place}:rank={kill.rank}:step>={step}:{who}"
        process = self.start(fault, f"checkpoint.asynchronous={str(kill.asynchronous).lower()}")
        if kill.place is None:
            time.sleep(kill.seconds)
            for pid in self.victims(kill, process.pid):
                os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=180)
        wait_for(self.place.is_empty, seconds=10)
        assert "Traceback" not in said
        return process.returncode != 0

    def victims(self, kill: Kill, launcher: int) -> list[int]:
        """Return the process to kill, or its launcher where it has not started yet."""
        if kill.victim == "rank":
            ranks = self.place.processes(f"RANK={kill.rank}")
            if ranks:
                return ranks
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return [int(children[0])] if kill.victim == "node" and children else [launcher]

    def finish(self) -> list[float]:
        """Train to the end, and return the losses of the whole run."""
        process = self.start()
        shown, said = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, ""), shown
        rows = [json.loads(row) for row in (self.run_dir / "metrics.jsonl").open()]
        assert [row["step"] for row in rows] == list(range(1, self.steps + 1))
        return losses(rows)


@pytest.fixture
def chaos(tmp_path, request) -> Iterator[Chaos]:
    chaos = Chaos(tmp_path, *request.param)
    yield chaos
    chaos.place.clear()


# In a step, in the midst of a save, and when only its last file is missing.
FEW = (
    Kill("node", 0, "step", 0, asynchronous=False),
    Kill("rank", 1, "write", 0, asynchronous=True),
    Kill("launcher", 0, "latest", 0, asynchronous=False),
)


@pytest.mark.parametrize(
    ("chaos", "kills"),
    [
        pytest.param(("PP 2", len(FEW)), FEW, id="few"),
        *(
            pytest.param((layout, count), None, id=layout, marks=pytest.mark.extended)
            for layout, count in KILLS.items()
        ),
    ],
    indirect=["chaos"],
)
def test_a_run_survives_every_kill_bit_by_bit(chaos, kills, tmp_path):
    whole = train(tiny_config(chaos.place.folder, tmp_path / "whole", **chaos.options))
    killed = 0
    for kill in kills or plan(chaos.random, chaos.num_kills, chaos.ranks):
        before = chaos.step()
        killed += chaos.suffer(kill)
        assert chaos.step() >= before, f"{kill} lost a checkpoint"
    assert chaos.finish() == losses(whole)
    assert killed == chaos.num_kills
    assert chaos.place.left() == []
    # PyTorch makes the folder of its compiler's cache as soon as it is imported.
    assert [path.name for path in chaos.temporary.glob("*") if "inductor" not in path.name] == []
    left = {path.name for path in (chaos.run_dir / "checkpoints").iterdir()}
    assert [name for name in left if not name.startswith("step-") or "." in name] == [
        name for name in left if name in (".lock", "latest")
    ]
