"""What compilers make for the tests: once, and again when a source of it changes."""

import fcntl
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
CSRC = ROOT / "csrc"


def compile_once(name: str, command: list[str], *folders: Path) -> Path:
    """Return what a compiler makes when it is given `-o` too, in a file of that name.

    Args:
        name: of the file.
        command: the compiler and its arguments.
        folders: with all sources and headers of ours.
    """

    def run(output: Path) -> None:
        done = subprocess.run(
            [*command, "-o", str(output)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return make_once(name, " ".join(command), run, *folders)


def make_once(name: str, key: str, make: Callable[[Path], object], *folders: Path) -> Path:
    """Return a file that `make` has written; `key` and the folders' files decide what is in it."""
    digest = sha256(f"{torch.__version__} {key}".encode())
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + sha256(path.read_bytes()).digest())
    made = ROOT / "build" / "tests" / digest.hexdigest()[:16] / name
    made.parent.mkdir(parents=True, exist_ok=True)
    # Of processes that come together, one makes it; a file that is there is whole.
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(aside := made.with_suffix(".new"))
            aside.rename(made)
    return made
