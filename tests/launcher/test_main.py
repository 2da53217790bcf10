"""What a command line of the launcher does."""

import json
import math
from pathlib import Path

import pytest

from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.distributed.exit_status import STOPPED
from megatron_gptx.launcher.command_line import decode
from megatron_gptx.launcher.main import main, usage
from tests.config.broken_launches import save
from tests.runs import tiny_config, write_corpus

# Scripts that leave a note of having been started, with their arguments.
NOTE = """
import json, pathlib, sys
pathlib.Path(__file__).with_suffix(".started").write_text(json.dumps(sys.argv[1:]))
"""


# Ends as a rank does that was asked to stop.
STOP = """
import os, pathlib
pathlib.Path("run/logs/.stopped").write_text("stopped; run the same command to go on")
os._exit(75)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Make a folder with scripts and a configuration, and go there."""
    write_corpus(tmp_path)
    for script in ("train.py", "generate.py", "setup.py"):
        (tmp_path / script).write_text(NOTE)
    config = tiny_config(tmp_path, tmp_path / "run", parallel__pipeline_stages=2)
    (tmp_path / "tiny.yml").write_text(dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def deepy(root, capfd):
    """Run the launcher and return its status and what it shows."""

    def deepy(*words: str) -> tuple[int, str, str]:
        status = main(words, root)
        return status, *capfd.readouterr()

    return deepy


def started(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("*.started"))


def test_no_words_at_all_show_the_usage_with_status_2(deepy):
    assert deepy() == (2, usage("./deepy.py"), "")


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("train.py", "--help")])
def test_help_shows_the_usage(deepy, words):
    assert deepy(*words) == (0, usage("./deepy.py"), "")


@pytest.mark.parametrize("words", [("generate.py",), ("generate.py", "tiny.yml")])
def test_help_about_a_script_comes_from_the_script(deepy, root, words):
    assert deepy(*words, "--help")[0] == 0
    assert json.loads((root / "generate.started").read_text()) == ["--help"]


def test_arguments_reach_a_script_as_they_are(deepy, root):
    words = ("--prompt", "two words", "--flag", "--note=a b", "-", "é $(x)")
    assert deepy("generate.py", "tiny.yml", "--set", "generation.seed=7", *words)[0] == 0
    option, packed, *arguments = json.loads((root / "generate.started").read_text())
    assert option == "--config"
    assert decode(packed).generation.seed == 7
    assert tuple(arguments) == words


@pytest.mark.parametrize("text", ["-x", "--set", "--dry-run", "-h", "--help", "--prompt", "-"])
def test_a_prompt_may_look_like_an_option(deepy, root, text):
    assert deepy("generate.py", "tiny.yml", "--prompt", text, "--prompt", "-y")[0] == 0
    arguments = json.loads((root / "generate.started").read_text())[2:]
    assert arguments == [f"--prompt={text}", "--prompt=-y"]


def test_overrides_may_follow_a_scripts_arguments(deepy, root):
    deepy("generate.py", "tiny.yml", "--prompt", "x", "--set", "generation.seed=7")
    packed = json.loads((root / "generate.started").read_text())[1]
    assert decode(packed).generation.seed == 7


@pytest.mark.parametrize("script", ["train.py", "generate.py"])
def test_a_dry_run_prints_the_plan_and_starts_nothing(deepy, root, script):
    if script == "generate.py":
        save()
    before = sorted(root.rglob("*"))
    prompt = ["--prompt", "x"] if script == "generate.py" else []
    status, shown, _ = deepy(script, "tiny.yml", "--dry-run", *prompt)
    assert status == 0
    assert "2 stages x 1 replica" in shown
    assert sorted(root.rglob("*")) == before


def test_a_dry_run_looks_for_the_checkpoint_that_a_script_would_read(deepy, root):
    words = ("generate.py", "tiny.yml", "--dry-run", "--prompt", "x")
    elsewhere = ("--set", "output.run_dir=elsewhere")
    assert deepy(*words)[0] == 2
    save()
    assert deepy(*words)[0] == 0
    assert deepy(*words, "--checkpoint", "10")[0] == 0
    status, _, said = deepy(*words, "--checkpoint=7")
    assert (status, "run/checkpoints holds no checkpoint of step 7; there are:" in said) == (
        2,
        True,
    )
    status, _, said = deepy(*words, "--checkpoint", "nowhere")
    assert (status, "--checkpoint nowhere: no such folder" in said) == (2, True)
    # A run that has saved nothing may read what another one has.
    assert deepy(*words, *elsewhere)[0] == 2
    assert deepy(*words, *elsewhere, "--checkpoint", "run")[0] == 0
    status, _, said = deepy(*words, "--set", "model.tied_head=true")
    assert (status, "model.tied_head: False in the checkpoint, True in" in said) == (2, True)


def test_auto_prints_the_plan_of_the_device_that_was_found(deepy, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    options = ["--dry-run", "--set", "model.attention.top_k=2"]
    found, of_a_cpu = (
        deepy("train.py", "tiny.yml", *options, "--set", f"launch.device={device}")[1]
        for device in ("auto", "cpu")
    )
    assert "peak" in found
    assert found == of_a_cpu


def test_epochs_reach_the_ranks_as_steps(deepy, root):
    words = ["--set", "training.steps=null", "--set", "training.epochs=0.5"]
    _, out, _ = deepy("train.py", "tiny.yml", *words)
    arguments = json.loads((root / "train.started").read_text())
    training = decode(arguments[arguments.index("--config") + 1]).training
    assert training.epochs is None
    assert f"training.epochs 0.5: {training.steps} steps" in out
    tokens = IndexedDataset(root / "train").num_tokens
    assert training.steps == math.ceil(0.5 * math.ceil(tokens / 32) / 8)


def test_a_stopped_run_that_began_afresh_says_how_to_go_on(deepy, root):
    (root / "train.py").write_text(STOP)
    status, shown, _ = deepy("train.py", "tiny.yml", "--set", "checkpoint.start=fresh")
    assert status == STOPPED
    assert shown.endswith(
        "run the same command to go on\nbut with --set checkpoint.start=auto: 'fresh' refuses "
        "every checkpoint, this run's too\n"
    )


def test_show_prints_every_option_and_its_source(deepy, root):
    (root / "over.yml").write_text("training:\n  steps: 7\n")
    status, shown, _ = deepy("show", "tiny.yml", "over.yml", "--set", "optimizer.lr=1e-5")
    assert status == 0
    lines = shown.splitlines()
    assert "  steps: 7" in lines
    assert "# training.steps: over.yml:2" in lines
    assert "# optimizer.lr: --set" in lines
    assert any(line.startswith("# model.num_layers: tiny.yml:") for line in lines)
    assert started(root) == []


MISTAKES = {
    "an unknown script": (["tain.py", "tiny.yml"], "did you mean train? see"),
    "a misspelt show": (["shwo", "tiny.yml"], "did you mean show? see"),
    "a file of the checkout that is no script": (["setup", "tiny.yml"], "setup: no such script"),
    "no configuration": (["train.py"], "no configuration given"),
    "a configuration after all options": (
        ["train.py", "--dry-run", "tiny.yml"],
        "no configuration before the first option",
    ),
    "a missing configuration": (["train.py", "nowhere.yml"], "nowhere.yml"),
    "a script's name that is left out": (["tiny.yml"], "tiny.yml: no such script"),
    "a script elsewhere": (["tools/plan.py", "tiny.yml"], "tools/plan.py: no such script"),
    "a configuration after the options": (
        ["train.py", "tiny.yml", "--dry-run", "over.yml"],
        "train.py does not know over.yml",
    ),
    "a misspelt option": (["train.py", "tiny.yml", "--dryrun"], "train.py does not know --dryrun"),
    "an option cut short": (["train.py", "tiny.yml", "--dry"], "train.py does not know --dry"),
    "an override without a value": (["train.py", "tiny.yml", "--set"], "--set needs a value"),
    "an override of nothing": (
        ["train.py", "tiny.yml", "--set", "model.layers=3"],
        "model.layers: unknown key",
    ),
    "a word that show does not know": (["show", "tiny.yml", "--all"], "show does not know --all"),
    "a missing dataset": (
        ["train.py", "tiny.yml", "--set", "data.train=nowhere"],
        "nowhere.idx: no such file",
    ),
    "ids above the vocabulary": (
        ["train.py", "tiny.yml", "--set", "model.vocab_size=63"],
        "train: token id 63 is outside the vocabulary of 63: raise model.vocab_size",
    ),
    "a run folder that is a file": (
        ["train.py", "tiny.yml", "--set", "output.run_dir=tiny.yml"],
        "tiny.yml is a file, not a folder",
    ),
    "a GPU that is not there": (
        ["generate.py", "tiny.yml", "--set", "launch.device=cuda"],
        "launch.device: is cuda, but",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_with_status_2_before_anything_starts(
    deepy, root, monkeypatch, mistake
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words, message = MISTAKES[mistake]
    status, _, said = deepy(*words)
    assert (status, started(root)) == (2, [])
    assert said.count(message) == 1
    assert "Traceback" not in said


def test_a_truncated_dataset_is_found_before_anything_starts(deepy, root):
    binary = root / "train.bin"
    binary.write_bytes(binary.read_bytes()[:-100])
    status, _, said = deepy("train.py", "tiny.yml")
    assert (status, started(root)) == (2, [])
    assert said.count("train.bin") == 1
    assert "Traceback" not in said


def test_a_dry_run_checks_what_a_script_would_refuse_itself(deepy, root):
    save()
    (root / "evaluate.py").write_text(NOTE)
    refused = {
        ("generate.py", "--promt", "x"): "generate.py CONFIG does not know --promt; did you mean",
        ("generate.py",): "the following arguments are required: --prompt",
        ("evaluate.py", "--set", "data.valid=null"): "data.valid: there is no validation data",
        ("evaluate.py", "--set", "data.valid=gone"): "data.valid: gone.idx: no such file",
    }
    assert deepy("evaluate.py", "tiny.yml", "--dry-run")[0] == 0
    for (script, *words), message in refused.items():
        status, _, said = deepy(script, "tiny.yml", "--dry-run", *words)
        assert (status, message in said) == (2, True), said
    assert started(root) == []
