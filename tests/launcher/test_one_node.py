"""What starts the ranks of one node ends them together, and says truly how they ended."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.launcher import one_node

PROGRAM = Path(one_node.__file__)
# Notes what a rank is told, then does what its arguments say for its number.
RANK = """
import json, os, pathlib, signal, sys, time
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE",
         "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
folder, rank = pathlib.Path(__file__).parent, os.environ["RANK"]
def leave(*_):
    (folder / f"asked-{rank}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
(folder / f"rank-{rank}").write_text(json.dumps({name: os.environ[name] for name in names}))
while len(list(folder.glob("rank-*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
end = sys.argv[1 + int(rank)]
if end == "wait":
    time.sleep(60)
if end.startswith("-"):
    os.kill(os.getpid(), -int(end))
os._exit(int(end))
"""


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "rank.py").write_text(RANK)
    return tmp_path / "scripts" / "rank.py"


def start(script: Path, devices: str, *ends: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), devices, "29511", str(script), *ends]
    return subprocess.Popen(command, cwd=script.parents[1], stderr=subprocess.PIPE, text=True)


def test_every_rank_is_told_who_it_is_and_where_all_of_them_meet(script):
    assert start(script, "3,GPU-8f2a", "0", "0").wait(60) == 0
    for rank in range(2):
        assert json.loads((script.parent / f"rank-{rank}").read_text()) == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_SIZE": "2",
            "CROSS_RANK": "0",
            "CROSS_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
            "CUDA_VISIBLE_DEVICES": "3,GPU-8f2a",
        }


@pytest.mark.parametrize(("end", "status"), [("2", 2), ("75", 75), ("-9", -9 % 256)])
def test_the_first_rank_that_fails_ends_the_others_and_its_status_is_passed_on(script, end, status):
    assert start(script, "0,1,2", "wait", end, "0").wait(60) == status
    assert [path.name for path in script.parent.glob("asked-*")] == ["asked-0"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_ranks_without_a_word(script, signum):
    node = start(script, "0,1", "wait", "wait")
    while len(list(script.parent.glob("rank-*"))) < 2:
        assert node.poll() is None
    node.send_signal(signum)
    _, said = node.communicate(timeout=60)
    assert (node.returncode, said) == (1, "")
    assert len(list(script.parent.glob("asked-*"))) == 2


def test_a_rank_that_does_not_answer_is_killed(monkeypatch):
    monkeypatch.setattr(one_node, "PATIENCE_SECONDS", 0.1)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as rank:
        assert rank.stdout.readline() == b"deaf\n"
        one_node._end([rank])
    assert rank.returncode == -signal.SIGKILL


def test_it_imports_no_library_and_nothing_from_the_current_folder(script):
    for name in ("megatron_gptx", "queue", "random", "signal", "subprocess", "torch"):
        (script.parents[1] / f"{name}.py").write_text("raise ImportError('a user has other plans')")
    node = start(script, "0", "0")
    _, said = node.communicate(timeout=60)
    assert (node.returncode, said) == (0, "")
    code = (
        "import sys; before = set(sys.modules); import one_node; "
        "print(*(sorted({name.partition('.')[0] for name in sys.modules.keys() - before}"
        " - sys.stdlib_module_names)))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=PROGRAM.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["one_node"]
