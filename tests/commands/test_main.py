"""One command in front of all the others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx import __version__
from megatron_gptx.commands.main import COMMANDS, LAUNCHED, main
from megatron_gptx.config.yaml_writer import dump
from tests.runs import tiny_config, write_corpus

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "megatron_gptx" / "commands"
TOOLS = {
    found[1]: path.name
    for path in sorted((ROOT / "tools").glob("*.py"))
    if (found := re.search(r'^    run\("(\w+)"\)$', path.read_text(encoding="utf-8"), re.MULTILINE))
}


def python(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write datasets and a configuration, and go to their folder."""
    write_corpus(tmp_path)
    (tmp_path / "tiny.yml").write_text(dump(tiny_config(tmp_path, tmp_path / "run")))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiny.yml"


def test_every_command_has_a_module_and_every_module_is_a_command():
    modules = {path.stem for path in FOLDER.glob("[!_]*.py")} - {"main"}
    assert modules | set(LAUNCHED) == set(COMMANDS)


def test_nothing_lies_beside_the_scripts_of_ranks_that_an_import_could_find():
    scripts = {path.name for path in (FOLDER / "workers").glob("*.py")} - {"__init__.py"}
    assert scripts == {f"{name}.py" for name in LAUNCHED if name != "show"}


def test_every_command_but_the_launched_ones_and_the_build_has_a_tool():
    assert set(TOOLS) == set(COMMANDS) - set(LAUNCHED) - {"build"}


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_help_lists_every_command_with_one_line(words, capsys):
    assert main(words) == (0 if words else 2)
    lines = capsys.readouterr().out.splitlines()
    for name, does in COMMANDS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith(does)
        assert len(line) <= 80


def test_the_list_of_commands_imports_none_of_them():
    code = """
import sys
before = set(sys.modules)
from megatron_gptx.commands.main import main
assert main(["--help"]) == 0
ours = sorted(name for name in set(sys.modules) - before if name.startswith("megatron_gptx"))
commands, output = ["", ".commands", ".commands.main"], ["", ".exit_status", ".log"]
allowed = [*commands, *(f".distributed{name}" for name in output)]
assert ours == [f"megatron_gptx{name}" for name in allowed], ours
assert not {"torch", "numpy", "pydantic", "yaml"} & set(sys.modules)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"megatron_gptx {__version__}\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("plna", "gptx: no command 'plna'; did you mean 'plan'? see gptx --help\n"),
        ("train.py", "gptx: no command 'train.py'; did you mean 'train'? see gptx --help\n"),
        ("workers", "gptx: no command 'workers'; see gptx --help\n"),
    ],
)
def test_an_unknown_command_is_one_line_with_status_2(word, message, capsys):
    assert main([word]) == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(LAUNCHED)))
def test_a_commands_help_names_it_as_it_was_typed(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert shown.startswith(f"usage: gptx {command} ")
    assert "%(prog)s" not in shown
    assert "tools/" not in shown


@pytest.mark.parametrize("command", ["train", "show"])
def test_the_launchers_help_names_the_command_as_it_was_typed(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "gptx train configs/1B.yml" in shown
    assert "deepy" not in shown


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_the_help_of_a_launched_script_names_the_command_as_it_was_typed(
    command, capfd, monkeypatch
):
    # The script is a process of its own, and imports what is installed where nothing else is named.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main([command, "--help"]) == 0
    assert capfd.readouterr().out.startswith(f"usage: gptx {command} CONFIG ")


def test_a_mistake_is_answered_by_the_commands_own_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: gptx plan ")


def test_a_mistake_in_a_launch_names_the_command_as_it_was_typed(tiny, capsys):
    assert main(["train", "tiny.yml", "--unheard-of"]) == 2
    assert capsys.readouterr().err == "train does not know --unheard-of; see gptx train --help\n"


def test_show_and_a_dry_run_need_no_checkout(tiny, capsys):
    assert main(["show", "tiny.yml", "--set", "training.steps=7"]) == 0
    assert "# training.steps: --set" in capsys.readouterr().out.splitlines()
    assert main(["train", "tiny.yml", "--dry-run"]) == 0
    assert "1 stage x 1 replica" in capsys.readouterr().out


def test_a_tool_names_itself_as_it_was_typed():
    shown = python("tools/inspect_dataset.py", "--help").stdout
    assert shown.startswith("usage: tools/inspect_dataset.py ")
    assert "\ntools/inspect_dataset.py data/corpus --duplicates" in shown


@pytest.mark.parametrize("through", ["gptx", "tools"])
def test_a_dataset_in_the_home_folder_lies_there(tmp_path, monkeypatch, through):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("corpus.jsonl").write_text('{"text": "one two"}\n')
    words = ["corpus.jsonl", "--tokenizer=bytes", "--output-prefix=~/data/x"]
    if through == "gptx":
        assert main(["preprocess", *words]) == 0
    else:
        tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), *words]
        subprocess.run(tool, check=True, capture_output=True)
    assert (tmp_path / "home" / "data" / "x.bin").is_file()
    assert not Path("~").exists()
