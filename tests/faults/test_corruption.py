"""Whatever happens to the files of a checkpoint on disk: refused, named, and never trained on."""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import read
from megatron_gptx.checkpoint.names import checkpoints
from megatron_gptx.config.schema import Config
from tests.checkpoints import OPTIMIZER_FILE, flip, refusal
from tests.runs import start, tiny_config, train

PAGE = 4096
LAYOUT: dict[str, Any] = {
    "parallel__pipeline_stages": 2,
    "parallel__zero_stage": 1,
    "precision": "bf16",
}


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Config:
    """Train two steps on two ranks, and save after each."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(corpus, run_dir, training__steps=2, checkpoint__interval=1, **LAYOUT)
    train(config)
    return config


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """Copy the trained run."""
    return Path(shutil.copytree(trained.output.run_dir, tmp_path / "run"))


class Files:
    """The files of a checkpoint, which can be damaged and are whole again afterwards."""

    def __init__(self, folder: Path, older: Path) -> None:
        self.folder, self.older = folder, older
        self.contents = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def write(self, name: str, content: bytes) -> None:
        assert content != self.contents[name], "this case would change nothing"
        (self.folder / name).write_bytes(content)

    def restore(self, names: list[str]) -> None:
        for name in names:
            (self.folder / name).write_bytes(self.contents[name])


def flip_byte(files: Files, name: str, choice: random.Random) -> list[str]:
    content = bytearray(files.contents[name])
    content[choice.randrange(len(content))] ^= choice.randrange(1, 256)
    files.write(name, bytes(content))
    return [name]


def truncate(files: Files, name: str, choice: random.Random) -> list[str]:
    content = files.contents[name]
    files.write(
        name, content[: choice.choice([0, len(content) - 1, choice.randrange(len(content))])]
    )
    return [name]


def extend(files: Files, name: str, choice: random.Random) -> list[str]:
    files.write(name, files.contents[name] + choice.randbytes(choice.choice([1, 8, PAGE])))
    return [name]


def zero_page(files: Files, name: str, choice: random.Random) -> list[str]:
    content = files.contents[name]
    starts = [s for s in range(0, len(content), PAGE) if any(content[s : s + PAGE])]
    start = choice.choice(starts)
    zeros = bytes(len(content[start : start + PAGE]))
    files.write(name, content[:start] + zeros + content[start + PAGE :])
    return [name]


def delete(files: Files, name: str, choice: random.Random) -> list[str]:
    (files.folder / name).unlink()
    return [name]


def swap(files: Files, name: str, choice: random.Random) -> list[str]:
    content = files.contents[name]
    other = choice.choice([n for n in files.contents if files.contents[n] != content])
    files.write(name, files.contents[other])
    files.write(other, content)
    return [name, other]


def take_older(files: Files, name: str, choice: random.Random) -> list[str]:
    files.write(name, (files.older / name).read_bytes())
    return [name]


DAMAGES = (flip_byte, truncate, extend, zero_page, delete, swap, take_older)


# Every kind of damage meets every file before chance decides on the rest.
@pytest.mark.parametrize(
    "extra", [0, pytest.param(1000, marks=pytest.mark.extended)], ids=["each once", "and by chance"]
)
def test_every_damaged_file_is_refused_by_name(run_dir, extra):
    folder = run_dir / "checkpoints"
    files = Files(folder / "step-00000002", folder / "step-00000001")
    names, choice = sorted(files.contents), random.Random(20261126)
    assert {"manifest.json", "manifest.sha256", OPTIMIZER_FILE} <= set(names)
    assert len(names) > 12
    assert refusal(run_dir) is None
    loaded, unnamed = [], []
    for case in range(len(names) * len(DAMAGES) + extra):
        number, kind = divmod(case, len(DAMAGES))
        name = names[number] if number < len(names) else choice.choice(names)
        changed = DAMAGES[kind](files, name, choice)
        said = refusal(run_dir)
        if said is None:
            loaded.append((DAMAGES[kind].__name__, changed))
        elif not any(name in said for name in changed):
            unnamed.append((DAMAGES[kind].__name__, changed, said))
        files.restore(changed)
    assert (loaded, unnamed) == ([], [])
    assert refusal(run_dir) is None


def swap_two_layers(folder: Path) -> None:
    one, two = (folder / f"weights/layer-00{layer}.safetensors" for layer in (2, 3))
    assert one.stat().st_size == two.stat().st_size
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def take_an_older_shard(folder: Path) -> None:
    shutil.copy(folder.with_name("step-00000001") / OPTIMIZER_FILE, folder / OPTIMIZER_FILE)


def take_an_older_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


RESUMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two layers": (
        swap_two_layers,
        "/weights/layer-002.safetensors has changed",
    ),
    "an older shard": (take_an_older_shard, f"/{OPTIMIZER_FILE} has changed"),
    "a manifest": (lambda folder: flip(folder / "manifest.json"), "step-00000002/manifest.json "),
    "an older checkpoint": (take_an_older_checkpoint, "holds the checkpoint of another step, 1"),
}


@pytest.mark.parametrize(
    "change",
    [
        "an older shard",
        *(
            pytest.param(change, marks=pytest.mark.extended)
            for change in ("two layers", "a manifest", "an older checkpoint")
        ),
    ],
)
def test_two_ranks_refuse_it_with_one_message_and_do_not_train(corpus, run_dir, tmp_path, change):
    damaged, message = RESUMED[change]
    damaged(run_dir / "checkpoints" / "step-00000002")
    rows, screen = (run_dir / "metrics.jsonl").read_bytes(), tmp_path / "screen"
    config = tiny_config(corpus, run_dir, training__steps=3, **LAYOUT)
    statuses = start(config, screen=screen)
    assert set(statuses) <= {2, -signal.SIGTERM}
    assert 2 in statuses
    said = screen.read_text()
    assert said.count("error on rank") == 1
    assert message in said
    assert "Traceback" not in said
    assert (run_dir / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize("place", ["write", pytest.param("rename", marks=pytest.mark.extended)])
def test_a_run_killed_while_it_saves_an_existing_step_again_mixes_nothing(
    corpus, run_dir, monkeypatch, place
):
    folder = run_dir / "checkpoints"
    first = {path.name: read(path).manifest["run"] for path in checkpoints(folder)}
    (folder / "latest").write_text("step-00000001\n")
    monkeypatch.setenv("GPTX_FAULT", f"kill:at={place}:step=2")
    config = tiny_config(corpus, run_dir, training__steps=3, checkpoint__interval=1, **LAYOUT)
    assert -signal.SIGKILL in start(config)
    for path in checkpoints(folder):
        found = read(path)
        assert damage(found, all_names(found)) is None
        assert found.manifest["run"] == first[path.name]
    found = newest(run_dir)
    assert found is not None
    assert found.step == 1


class Disk(NamedTuple):
    """How full a disk is made: options of a tmpfs that takes one checkpoint, not two."""

    limits: Callable[[int, int], str]
    message: str


DISKS = {
    # Found before anything is written, with the margin that a save keeps free.
    "bytes": Disk(lambda size, files: f"size={size * 8 // 5 + 2**20}", "no space left: it needs"),
    # Found by a rank in the middle of writing.
    "files": Disk(lambda size, files: f"nr_inodes={files * 3 // 2}", "No space left on device"),
}


@contextmanager
def small_disk(where: Path, options: str) -> Iterator[None]:
    """Mount a small file system, or skip."""
    where.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.mark.parametrize(
    ("full", "on_failure"),
    [
        ("bytes", "stop"),
        ("files", "continue"),
        pytest.param("bytes", "continue", marks=pytest.mark.extended),
        pytest.param("files", "stop", marks=pytest.mark.extended),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_as_it_is(
    corpus, trained, tmp_path, full, on_failure
):
    saved = list((Path(trained.output.run_dir) / "checkpoints/step-00000002").rglob("*"))
    # A page of the disk is taken whole; besides the files: the folders, latest and the lock.
    size = sum(-path.stat().st_size // PAGE * -PAGE for path in saved if path.is_file())
    options = DISKS[full].limits(size, len(saved) + 4)
    run_dir, screen = tmp_path / "run", tmp_path / "screen"
    config = tiny_config(
        corpus,
        run_dir,
        training__steps=5,
        checkpoint__interval=2,
        checkpoint__on_failure=on_failure,
        **LAYOUT,
    )
    with small_disk(run_dir / "checkpoints", options):
        assert 2 in start(config, screen=screen)
        found = newest(run_dir)
        assert found is not None
        assert (found.step, damage(found, all_names(found))) == (2, None)
        names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {".lock", "latest", "step-00000002"}
    said = screen.read_text()
    assert "step-00000004 could not be written: " in said
    assert DISKS[full].message in said
    assert "Traceback" not in said
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    # The last checkpoint cannot be done without, so that both runs end with an error.
    goes_on = on_failure == "continue"
    assert ("; the run goes on" in said, len(rows)) == (goes_on, 5 if goes_on else 4)
    last = f"step-0000000{len(rows)} could not be written: "
    assert last in said.partition("error on rank ")[2]
