"""Hostile names, lines and arguments are refused with one message, or arrive as they are."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import CheckpointError
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.launcher.devices import HOST_LINE, hostfile_slots
from megatron_gptx.launcher.hosts import hosts_command, hosts_environment
from megatron_gptx.launcher.main import main
from tests.runs import tiny_config, write_corpus

HOSTILE = (
    "; touch harm",
    "$(touch harm)",
    "`touch harm`",
    "| touch harm",
    "& touch harm",
    "> harm",
    "x\ntouch harm",
    "x\r\ntouch harm",
    "'; touch harm; '",
    '"; touch harm; "',
    '" $(touch harm) "',
    "a $(touch harm)",
    "${IFS}touch${IFS}harm",
    "-oProxyCommand=touch harm",
    "-x",
    "--hostfile=harm",
    "../../harm",
    "/dev/../harm",
    "~/harm",
    "*",
    "%h",
    "%n;touch harm",
    "a\\\ntouch harm",
    "é ü 漢字",
    "node\u2028touch harm",
    "node\u202eharm",
    "\ud800",
    "x" * 5000,
    "!!python/object/apply:os.system ['touch harm']",
    "{harm: [1, 2]}",
    "a\0b",
    "\x1b]0;harm\x07",
)

# Leaves its arguments in a file beside itself.
NOTE = """
import json, pathlib, sys
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def root(tmp_path, monkeypatch, capfd) -> Path:
    write_corpus(tmp_path)
    (tmp_path / "generate.py").write_text(NOTE)
    (tmp_path / "tiny.yml").write_text(dump(tiny_config(tmp_path, tmp_path / "run")))
    (tmp_path / "hosts").write_text("node1 slots=1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Attempts:
    """Counts what was refused and what was inert; a traceback or harm fails the test at once."""

    def __init__(self, root: Path) -> None:
        self.root, self.refused, self.inert = root, 0, 0

    @contextmanager
    def of(self, text: str) -> Iterator[None]:
        try:
            yield
            self.inert += 1
        except UserError:
            self.refused += 1
        assert list(self.root.rglob("harm")) == [], repr(text)

    def assert_refused_or_inert(self, *, at_least_refused: int = 0) -> None:
        assert self.refused + self.inert == len(HOSTILE)
        assert self.refused >= at_least_refused


@pytest.fixture
def attempts(root) -> Attempts:
    return Attempts(root)


def test_lines_of_a_hostfile(attempts, root):
    """Whatever is taken for a host is a name that no program takes for an option."""
    hosts = root / "hosts"
    for text in HOSTILE:
        with attempts.of(text):
            hosts.write_bytes(f"{text} slots=1\n".encode(errors="surrogatepass"))
            for name, slots in hostfile_slots(hosts).items():
                assert HOST_LINE.fullmatch(f"{name} slots={slots}")
    attempts.assert_refused_or_inert(at_least_refused=len(HOSTILE) - 1)


def test_run_folders(attempts, root, capfd):
    """A launch takes the name as it is, or says in one message what is wrong with it."""
    for text in HOSTILE:
        with attempts.of(text):
            quoted = json.dumps(text)
            status = main(["generate.py", "tiny.yml", "--set", f"output.run_dir={quoted}"], root)
            assert_one_message(status, capfd.readouterr().err)
            if status == 0:
                config = load([root / "tiny.yml"], [f"output.run_dir={quoted}"])
                assert config.output.run_dir == str(Path(text).expanduser())
            else:
                raise UserError("refused")
    attempts.assert_refused_or_inert(at_least_refused=7)


def test_values_that_are_not_quoted(attempts, root, capfd):
    for text in HOSTILE:
        with attempts.of(text):
            status = main(["show", "tiny.yml", "--set", f"logging.wandb_project={text}"], root)
            assert_one_message(status, capfd.readouterr().err)
            if status:
                raise UserError("refused")
    attempts.assert_refused_or_inert(at_least_refused=7)


def test_names_of_scripts_and_configurations(attempts, root, capfd):
    for text in HOSTILE:
        with attempts.of(text):
            for words in ([text, "tiny.yml"], ["generate.py", text], [f"{text}.py", "tiny.yml"]):
                status = main(words, root)
                said = capfd.readouterr().err
                assert status == 2
                assert_one_message(status, said)
            raise UserError("refused")
    attempts.assert_refused_or_inert(at_least_refused=len(HOSTILE))


def test_arguments_of_a_script_on_one_node_arrive_as_they_are(attempts, root):
    for text in HOSTILE:
        if "\0" in text or "\ud800" in text:  # the system starts no process with such words
            attempts.refused += 1
            continue
        with attempts.of(text):
            assert main(["generate.py", "tiny.yml", "--note", text], root) == 0
            arguments = json.loads((root / "generate.json").read_text())
            assert arguments[2:] == ["--note", text]
    attempts.assert_refused_or_inert()


def test_arguments_of_a_script_on_several_nodes(attempts, root):
    """What is not refused means the same to the program as to a shell on the way."""
    config = tiny_config(root, root / "run", launch__hostfile=str(root / "hosts"))
    for text in HOSTILE:
        with attempts.of(text):
            command = hosts_command(
                config, ["other.py", text], {"master_addr": "node1", "master_port": 1}
            )
            line = f"printf '%s\\n' {' '.join(command)}"
            through = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
            assert through.stdout.splitlines() == command
    attempts.assert_refused_or_inert(at_least_refused=len(HOSTILE) - 5)


def test_arguments_of_the_launcher_of_several_nodes(attempts, root):
    """They reach it as the words that they are, never as an option of DeepSpeed's runner."""
    for text in HOSTILE:
        with attempts.of(text):
            options = [f"launch.launcher_args={json.dumps(text)}", "launch.hostfile=hosts"]
            config = load([root / "tiny.yml"], options)
            command = hosts_command(config, ["x.py"], {"master_addr": "node1", "master_port": 1})
            assert f"--launcher_args={text}" in command
    attempts.assert_refused_or_inert(at_least_refused=7)


def test_addresses_to_meet_at(attempts, root):
    for text in HOSTILE:
        with attempts.of(text):
            load([root / "tiny.yml"], [f"launch.master_addr={json.dumps(text)}"])
    attempts.assert_refused_or_inert(at_least_refused=len(HOSTILE) - 1)


@pytest.mark.parametrize("name", ["PYTHONPATH", "NCCL_DEBUG", "UCX_TLS"])
def test_variables_that_deepspeed_hands_to_other_nodes(attempts, name):
    """In the double quotes that DeepSpeed puts around a value, a shell finds the value."""
    for text in HOSTILE:
        with attempts.of(text):
            assert hosts_environment({name: text}) == {name: text}
            if "\ud800" in text or "\0" in text:
                continue
            shown = subprocess.run(
                ["sh", "-c", f'export X="{text}"; printf %s "$X"'], capture_output=True, check=True
            )
            assert shown.stdout.decode() == text
    attempts.assert_refused_or_inert(at_least_refused=10)


def test_names_of_variables(attempts):
    for text in HOSTILE:
        with attempts.of(text):
            assert hosts_environment({f"PYTHON{text}": "x"}) in ({}, {f"PYTHON{text}": "x"})
    assert hosts_environment({"PYTHON;touch harm": "x"}) == {}


def test_lines_of_deepspeeds_file_of_variables(attempts, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    for text in HOSTILE:
        for line in (f"{text}=x", f"NAME={text}"):
            (root / ".deepspeed_env").write_bytes(line.encode(errors="surrogatepass"))
            with attempts.of(text):
                hosts_environment({})
    assert attempts.refused >= len(HOSTILE) + 10
    (root / ".deepspeed_env").write_text("NCCL_SOCKET_IFNAME=eth0\n")
    assert hosts_environment({"HOME": "h"}) == {"HOME": "h"}


def test_the_name_of_the_newest_checkpoint(attempts, root):
    folder = root / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for text in HOSTILE:
        (folder / "latest").write_bytes(text.encode(errors="surrogatepass"))
        with attempts.of(text), pytest.raises(CheckpointError):
            newest(root / "run")
    assert attempts.inert == len(HOSTILE)


@pytest.mark.parametrize("folder", ["two words", "$(touch harm)", "a;b", "quo'te"])
def test_a_folder_that_a_remote_shell_would_misread(root, monkeypatch, folder):
    (root / folder).mkdir()
    monkeypatch.chdir(root / folder)
    config = tiny_config(root, root / "run", launch__hostfile=str(root / "hosts"))
    with pytest.raises(UserError, match="would pass through the shells of other nodes"):
        hosts_command(config, ["x.py"], {"master_addr": "node1", "master_port": 1})


def assert_one_message(status: int, said: str) -> None:
    assert "Traceback" not in said
    assert (status, bool(said)) in ((0, False), (2, True))
