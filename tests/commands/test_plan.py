"""The plan as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.commands import plan

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "configs" / "1B-v100x2.yml"

TINY = """
model: {num_layers: 3, hidden_size: 8, num_heads: 2, vocab_size: 20, seq_length: 6}
training: {steps: 10, micro_batch_size: 2, accumulation_steps: 4}
optimizer: {lr: 1e-4}
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_text(TINY)
    return path


def test_the_tool_prints_json_of_the_reference_with_the_specified_numbers():
    command = [sys.executable, ROOT / "tools" / "plan.py", REFERENCE, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = json.loads(done.stdout)
    assert numbers["parameters"] == 1_099_214_888
    stages = [(s["first_layer"], s["stop_layer"], s["parameters"]) for s in numbers["stages"]]
    assert stages == [(0, 11, 550_653_972), (11, 23, 548_560_916)]


def test_the_table_of_the_reference_shows_both_stages(run):
    lines = run(plan, REFERENCE).stdout.splitlines()
    assert lines[0] == "model    1,099,214,888 parameters in 23 layers"
    rows = {line.split()[0]: line.split()[1:3] for line in lines if line[:5].strip().isdigit()}
    assert rows == {"0": ["0-10", "550,653,972"], "1": ["11-22", "548,560,916"]}


def test_overrides_and_later_files_change_the_plan(run, tiny, tmp_path):
    overlay = tmp_path / "overlay.yml"
    overlay.write_text("parallel: {pipeline_stages: 2}\n")
    done = run(plan, tiny, overlay, "--json", "--set", "parallel.boundaries=[1]")
    stages = json.loads(done.stdout)["stages"]
    assert [stage["first_layer"] for stage in stages] == [0, 1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.pipeline_stages=9", "9 stages"),
        ("model.num_layer=9", "num_layers"),
        ("parallel.boundaries=[3]", "boundaries"),
    ],
)
def test_a_mistake_ends_with_status_2_and_no_traceback(run, tiny, override, message):
    done = run(plan, tiny, "--set", override)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_missing_file_ends_with_status_2(run, tmp_path):
    done = run(plan, tmp_path / "missing.yml")
    assert done.returncode == 2
    assert "missing.yml" in done.stderr


def test_planning_does_not_load_torch(tiny):
    code = f"""
import sys
from megatron_gptx.commands import plan
assert plan.main([{str(tiny)!r}]) == 0
assert not {{"torch", "deepspeed", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("device", "said"), [("auto", True), ("cuda", False), ("cpu", False)])
def test_a_plan_says_which_device_it_takes_for_granted(tiny, capsys, device, said):
    assert plan.main([str(tiny), "--set", f"launch.device={device}"]) == 0
    assert ("Planned for GPUs, as launch.device is auto" in capsys.readouterr().out) == said
