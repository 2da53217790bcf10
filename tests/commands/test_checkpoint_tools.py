"""list, verify, diff and prune on the command line, with real checkpoints of two layouts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.latest import lock
from megatron_gptx.commands import checkpoints, prune
from tests.checkpoints import flip, write_checkpoint
from tests.runs import start, tiny_config, train, write_corpus

ROOT = Path(checkpoints.__file__).resolve().parents[2]
WEIGHTS_FILE = "weights/layer-002.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Train three steps on two stages, and the same steps on one; return the folder of both."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    options = {"training__steps": 3, "checkpoint__interval": 1, "checkpoint__keep_last": None}
    train(tiny_config(folder, folder / "two", parallel__pipeline_stages=2, **options))
    train(tiny_config(folder, folder / "one", **options))
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch) -> Path:
    """Go to a folder with copies of both runs."""
    for name in ("one", "two"):
        shutil.copytree(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def step(run_dir: str, number: int) -> Path:
    return Path(run_dir) / "checkpoints" / f"step-{number:08d}"


def left(run_dir: str) -> list[str]:
    return sorted(path.name for path in (Path(run_dir) / "checkpoints").glob("[!.]*"))


def test_a_list_says_of_each_checkpoint_what_it_is(run, runs):
    status, output, message = run(checkpoints, "list", "two")
    assert (status, message) == (0, "")
    header, *rows = output.splitlines()
    assert header.split() == ["step", "saved", "size", "layout", "precision", "loss", "files"]
    assert len(rows) == 3
    about = r"\d+ min ago  0\.\d MB  PP 2 x DP 1, ZeRO 0  fp32       \d\.\d{4}  whole"
    for number, row in enumerate(rows, 1):
        assert re.fullmatch(f"   {number}  {'latest' if number == 3 else '      '}  {about}", row)


def test_a_list_names_what_is_damaged_and_ends_with_an_error(run, runs):
    (step("one", 1) / WEIGHTS_FILE).unlink()
    flip(step("one", 2) / "manifest.json")
    (step("one", 3) / "stray").touch()
    (runs / "one" / "checkpoints" / "latest").write_text("step-00000009")
    (runs / "one" / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n[]\n{"st')
    status, output, message = run(checkpoints, "list", "one")
    assert status == 2
    first, second, third = output.splitlines()[1:]
    assert first.endswith(f"{step('one', 1)}/{WEIGHTS_FILE} is missing")
    assert f"{step('one', 2)}/manifest.json " in second
    assert third.endswith(f"{step('one', 3)}/stray is not in the manifest")
    assert "latest names 'step-00000009', which is no checkpoint" in message


def test_verifying_reads_every_file(run, runs):
    status, output, message = run(checkpoints, "verify", "two")
    assert (status, message) == (0, "")
    assert [line.partition(":")[0] for line in output.splitlines()] == [
        str(step("two", number)) for number in (1, 2, 3)
    ]
    assert all(line.endswith(" bytes, intact") for line in output.splitlines())


def test_verifying_names_every_damaged_file(run, runs):
    flip(step("two", 2) / WEIGHTS_FILE)
    flip(step("two", 2) / "weights/layer-003.safetensors")
    (step("two", 2) / "stray").touch()
    flip(step("two", 3) / "manifest.sha256")
    status, output, message = run(checkpoints, "verify", "two")
    assert status == 2
    changed = "has changed since it was saved"
    assert message.splitlines() == [
        f"{step('two', 2)}/stray is not in the manifest",
        f"{step('two', 2)}/{WEIGHTS_FILE} {changed} (its checksum differs)",
        f"{step('two', 2)}/weights/layer-003.safetensors {changed} (its checksum differs)",
        f"{step('two', 3)}/manifest.json {changed} (manifest.sha256 does not match)",
    ]
    assert ", 3 of them damaged" in output
    assert run(checkpoints, "verify", step("two", 1))[0] == 0
    assert run(checkpoints, "verify", step("two", 2))[0] == 2


def test_checkpoints_of_two_layouts_are_compared_tensor_by_tensor(run, runs):
    status, output, message = run(checkpoints, "diff", "one", step("two", 3))
    assert message == ""
    lines = output.splitlines()
    tensors = [line for line in lines if line.startswith("layer ")]
    assert len(tensors) > 100
    assert all(line.endswith(" equal") for line in tensors)
    assert {line.split()[3] for line in tensors} == {"weight", "exp_avg", "exp_avg_sq"}
    assert "config     parallel.pipeline_stages 1 -> 2" in lines
    assert lines[-1] == f"{len(tensors)} of {len(tensors)} tensors are equal"
    assert status == 1  # for the configurations differ
    assert run(checkpoints, "diff", "one", "one")[0] == 0


def test_a_difference_of_two_steps_is_measured(run, runs):
    status, output, _ = run(checkpoints, "diff", step("one", 1), step("two", 2))
    assert status == 1
    assert "state      step 1 -> 2" in output
    measured = re.findall(r"largest difference (\S+), relative (\S+)", output)
    assert len(measured) > 50
    assert all(float(largest) > 0 and float(relative) > 0 for largest, relative in measured)
    # Adam's first two steps are of the size of the learning rate at most, each: 0.005 and 0.01.
    weights = re.findall(r"weight +largest difference (\S+),", output)
    assert max(map(float, weights)) <= 0.011


def test_what_only_one_of_two_checkpoints_has_is_said(run, runs, trained):
    options = {"training__steps": 1, "precision": "bf16", "model__num_layers": 2}
    train(tiny_config(trained, runs / "bf16", **options))
    _, output, _ = run(checkpoints, "diff", "one", "bf16")
    assert re.search(r"\bfp32 +only in the second\n", output)
    assert re.search(r"layer 5 .* weight +only in the first\n", output)
    assert "config     model.num_layers 4 -> 2" in output


def test_a_damaged_checkpoint_is_not_compared(run, runs):
    flip(step("two", 3) / WEIGHTS_FILE)
    status, output, message = run(checkpoints, "diff", "one", "two")
    assert (status, output.count("layer ")) == (2, 0)
    assert f"is damaged: {step('two', 3)}/{WEIGHTS_FILE} has changed" in message


@pytest.mark.parametrize("action", [["list"], ["verify"], ["diff", "one"]])
def test_a_folder_without_checkpoints_is_a_mistake(run, runs, action):
    status, _, message = run(checkpoints, *action, "nowhere")
    assert (status, message) == (2, "nowhere holds no checkpoint\n")


def test_pruning_keeps_what_it_is_asked_to(run, runs):
    arguments = [prune, "two", "--keep-last", 1, "--keep-step", 1]
    status, output, _ = run(*arguments, "--dry-run")
    assert (status, output) == (0, f"would delete {step('two', 2)}\n")
    assert len(left("two")) == 4
    status, output, _ = run(*arguments)
    assert status == 0
    assert output.splitlines() == [
        f"deleted {step('two', 2)}",
        "kept step-00000001, step-00000003",
    ]
    assert left("two") == ["latest", "step-00000001", "step-00000003"]
    assert run(prune, "one", "--keep-last", 1, "--keep-every", 2)[0] == 0
    assert left("one") == ["latest", "step-00000002", "step-00000003"]


def test_pruning_leaves_what_latest_names_and_what_it_does_not_own(run, runs):
    folder = runs / "two" / "checkpoints"
    (folder / "latest").write_text("step-00000002")
    (folder / "best").mkdir()
    shutil.move(step("two", 1), runs / "moved")
    step("two", 1).symlink_to(runs / "moved")
    status, _, message = run(prune, "two", "--keep-last", 1)
    assert (status, message) == (1, f"{step('two', 1)} could not be deleted\n")
    assert left("two") == ["best", "latest", "step-00000001", "step-00000002", "step-00000003"]
    assert (runs / "moved" / WEIGHTS_FILE).exists()


def test_pruning_goes_on_after_a_failed_delete(run, runs):
    # Where something is mounted, nothing can be deleted, not even by root.
    command = ["mount", "-t", "tmpfs", "tmpfs", str(step("two", 1) / "weights")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    hidden = step("two", 1).with_name("step-00000001.deleted.partial")
    try:
        status, output, message = run(prune, "two", "--keep-last", 1)
    finally:
        mounted = hidden if hidden.exists() else step("two", 1)
        subprocess.run(["umount", "--lazy", str(mounted / "weights")], check=True)
    assert status == 1
    assert f"deleted {step('two', 2)}\n" in output
    assert message.startswith(f"{step('two', 1)} could not be deleted")
    assert left("two") == ["latest", hidden.name, "step-00000003"]


def test_pruning_waits_for_no_run_and_disturbs_none(run, runs):
    held = lock(runs / "two" / "checkpoints")
    status, _, message = run(prune, "two", "--keep-last", 1)
    assert (status, len(left("two"))) == (2, 4)
    assert "two/checkpoints is in use by another run" in message
    held.close()


@pytest.mark.parametrize("content", [None, "none", "../one", "step-00000009"])
def test_pruning_does_nothing_where_latest_names_no_checkpoint(run, runs, content):
    pointer = runs / "two" / "checkpoints" / "latest"
    pointer.unlink()
    if content is not None:
        pointer.write_text(content)
    status, output, message = run(prune, "two", "--keep-last", 1)
    assert (status, output) == (2, "")
    assert "latest" in message
    assert len(left("two")) >= 3


def test_pruning_makes_no_folder_for_a_run_that_is_none(run, runs):
    status, _, message = run(prune, "nowhere", "--keep-last", 1)
    assert (status, message) == (2, "nowhere holds no checkpoint\n")
    assert not (runs / "nowhere").exists()


def test_a_pruned_run_goes_on(run, runs, trained):
    assert run(prune, "two", "--keep-last", 1)[0] == 0
    options = {"training__steps": 4, "parallel__pipeline_stages": 2}
    assert start(tiny_config(trained, runs / "two", **options)) == [0, 0]
    assert "step-00000004" in left("two")


@pytest.mark.parametrize("tool", ["inspect_checkpoint.py", "prune_checkpoints.py"])
def test_the_tools_can_be_asked_for_help(tool):
    command = [sys.executable, str(ROOT / "tools" / tool), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tools/{tool}" in done.stdout


def test_the_folder_of_a_run_is_named_to_who_names_that_of_its_checkpoints(tmp_path, capsys):
    write_checkpoint(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    for tool, *words in (
        (checkpoints, "list", str(folder)),
        (checkpoints, "diff", str(folder), str(tmp_path)),
        (prune, str(folder), "--keep-last", "1"),
    ):
        assert tool.main(words) == 2
        said = f"{folder} holds no checkpoint of a run; name the folder of the run, {tmp_path}\n"
        assert capsys.readouterr().err == said
