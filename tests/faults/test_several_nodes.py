"""Runs over several nodes, all of them here: what starts processes there is replaced, no more."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.integrity import damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.distributed.exit_status import FINISHED, STOPPED
from tests.launches import Place, has_rows, wait_for

# As through ssh, a shell reads the command line of a node, which has variables of its own only.
PDSH = """#!{python}
import json, os, subprocess, sys
with open("{folder}/started", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
hosts = sys.argv[sys.argv.index("-w") + 1].split(",")
line = " ".join(sys.argv[sys.argv.index("-w") + 2 :])
if line.startswith("pkill"):  # by their pattern, on the nodes; here by their numbers
    for pid in open("{folder}/nodes").read().split():
        os.kill(int(pid), 15)
    sys.exit(0)
own = {{name: os.environ[name] for name in ("PATH", "HOME", "GPTX_TEST_RUN")}}
line = line.replace(sys.executable, "exec " + sys.executable, 1)
nodes = [  # out of reach of a signal to a group, as on other machines
    subprocess.Popen(["sh", "-c", line.replace("%n", str(n))], env=own, start_new_session=True)
    for n in range(len(hosts))
]
with open("{folder}/nodes", "w") as file:
    file.write(" ".join(str(node.pid) for node in nodes))
sys.exit(max(node.wait() % 256 for node in nodes))
"""
SRUN = """#!{python}
import json, os, subprocess, sys
with open("{folder}/started", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
(export,) = [word for word in sys.argv if word.startswith("--export=ALL,")]
words = sys.argv[sys.argv.index(export) + 1 :]
count = sys.argv[sys.argv.index("-n") + 1]
os.environ.update(pair.split("=", 1) for pair in export.split(",")[1:])
os.environ.update(SLURM_NTASKS=count, SLURM_LOCALID="0")
tasks = [
    subprocess.Popen(words, env={{**os.environ, "SLURM_PROCID": str(n)}}) for n in range(int(count))
]
sys.exit(max(task.wait() % 256 for task in tasks))
"""
PROGRAMS = {
    "pdsh": PDSH,
    "srun": SRUN,
    "ssh": "#!/bin/sh\necho hostname 127.0.0.1\n",
    "sinfo": "#!/bin/sh\n",
}


@pytest.fixture
def place(request, tmp_path, monkeypatch) -> Iterator[Place]:
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(python=sys.executable, folder=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    place = Place(
        tmp_path,
        launch__hostfile="hosts",
        launch__launcher=request.param,
        launch__master_addr="127.0.0.1",
    )
    yield place
    place.clear()


def launchers(often: str) -> pytest.MarkDecorator:
    """Run a test with both launchers of nodes, in the ordinary suite with one of them."""
    seldom = {"pdsh", "slurm"} - {often}
    extended = [pytest.param(each, marks=pytest.mark.extended) for each in seldom]
    return pytest.mark.parametrize("place", [often, *extended], indirect=True)


@launchers("pdsh")
def test_ranks_of_several_nodes_finish_and_their_command_lines_are_plain_words(place):
    done = place.launch("train.py", WANDB_API_KEY="canary", MLFLOW_TRACKING_TOKEN="canary")
    assert done.status == FINISHED, done.shown + done.said
    assert "step 3: saved" in done.shown
    assert "canary" not in (place.folder / "started").read_text() + done.shown + done.said
    assert place.is_empty()
    # Nothing that a shell would read otherwise reaches a node.
    words = json.loads((place.folder / "started").read_text().splitlines()[0])
    start = words.index(str(Path(__file__).resolve().parents[2] / "train.py"))
    assert words[start + 1] == "--config"
    assert len(words) == start + 3


@launchers("slurm")
def test_a_signal_to_the_launcher_reaches_the_ranks_of_all_nodes(place):
    process = place.start("train.py", "tiny.yml", "--set", "training.steps=100000")
    run_dir = place.folder / "run"
    wait_for(has_rows(run_dir / "metrics.jsonl"))
    process.send_signal(signal.SIGTERM)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == STOPPED, shown + said
    checkpoint = newest(run_dir)
    assert damage(checkpoint, checkpoint.manifest["files"]) is None
    assert f"stopped by SIGTERM at step {checkpoint.step}; saved {checkpoint.path}" in shown
    wait_for(place.is_empty, seconds=10)


@pytest.mark.extended
@pytest.mark.parametrize("place", ["pdsh", "slurm"], indirect=True)
def test_a_runner_that_is_terminated_alone_takes_no_unsaved_step_with_it(place):
    process = place.start("train.py", "tiny.yml", "--set", "training.steps=100000")
    run_dir = place.folder / "run"
    wait_for(has_rows(run_dir / "metrics.jsonl"))
    (runner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(runner), signal.SIGTERM)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == STOPPED, shown + said
    checkpoint = newest(run_dir)
    assert f"stopped by SIGTERM at step {checkpoint.step}; saved {checkpoint.path}" in shown
    wait_for(place.is_empty, seconds=10)
