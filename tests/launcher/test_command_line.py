"""The command lines that start ranks, and the configuration that travels in them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.launcher.command_line import (
    decode,
    encode,
    environment,
    launch_command,
    rendezvous,
)
from megatron_gptx.launcher.devices import Placement
from megatron_gptx.launcher.hosts import module_command
from tests.runs import tiny_config

CPU = Placement("cpu", replicas=1, ranks=2)


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, tmp_path / "run 'with' $(odd) names", model__dropout=0.1)


def test_a_configuration_survives_the_journey_to_a_rank(config):
    assert decode(encode(config)) == config


def test_a_packed_configuration_is_one_word_that_no_shell_touches(config):
    word = encode(config)
    assert shlex.quote(word) == word


def test_one_node_is_started_without_a_runner(config):
    python, program, devices, _, *words = launch_command(config, CPU, Path("train.py"), [])
    assert (python, Path(program).name, devices) == (sys.executable, "one_node.py", "0,1")
    assert words == ["train.py", "--config", encode(config)]


def test_the_runner_imports_nothing_from_the_current_folder(tmp_path):
    for name in ("deepspeed", "queue", "random", "runpy", "tokenize"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a user has other plans')")
    command = [*module_command("deepspeed.launcher.runner"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_two_launches_take_different_free_ports(config):
    ports = {rendezvous(config)["master_port"] for _ in range(2)}
    assert len(ports) == 2


def test_ranks_of_several_nodes_meet_on_the_first_host(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node7 slots=1\nnode2 slots=1\n")
    config = tiny_config(tmp_path, tmp_path, launch__hostfile=str(hosts))
    assert rendezvous(config)["master_addr"] == "node7"
    elsewhere = tiny_config(
        tmp_path, tmp_path, launch__hostfile=str(hosts), launch__master_addr="head"
    )
    assert rendezvous(elsewhere)["master_addr"] == "head"


def test_a_given_port_is_used(tmp_path):
    config = tiny_config(tmp_path, tmp_path, launch__master_port=29511)
    assert launch_command(config, CPU, Path("train.py"), [])[3] == "29511"


def test_ranks_get_the_gpus_that_were_visible_to_the_launcher(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2a,5")
    command = launch_command(config, Placement("cuda", 1, 2), Path("train.py"), [])
    assert command[2] == "3,GPU-8f2a"


def test_ranks_get_the_first_gpus_where_all_are_visible(config, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = launch_command(config, Placement("cuda", 1, 2), Path("train.py"), [])
    assert command[2] == "0,1"


def test_hosts_are_started_by_deepspeeds_runner(tmp_path):
    (tmp_path / "hosts").write_text("# ours\nnode1   slots=2 # fast\n")
    config = tiny_config(
        tmp_path,
        tmp_path,
        launch__hostfile=str(tmp_path / "hosts"),
        launch__launcher="slurm",
        launch__launcher_args="--exclusive",
    )
    command = launch_command(config, Placement("cuda", 1, 2), Path("train.py"), [])
    assert command[:3] == module_command("deepspeed.launcher.runner")
    words = ("--launcher=slurm", "--master_addr=node1", "--launcher_args=--exclusive")
    assert {*words, "--no_ssh_check"} <= {*command}
    hostfile = Path(command[command.index("--hostfile") + 1])
    assert hostfile == tmp_path / "logs" / "hostfile"
    assert hostfile.read_text() == "node1 slots=2\n"
    assert command[-3:] == ["train.py", "--config", encode(config)]


@pytest.mark.parametrize("script", ["generate.py", "evaluate.py"])
def test_generation_and_evaluation_run_as_one_process(config, script):
    command = launch_command(config, CPU, Path(script), ["--prompt", "two words"])
    assert command == [
        *(sys.executable, script, "--config", encode(config)),
        *("--prompt", "two words"),
    ]


def test_ranks_on_the_cpu_are_told_so_and_share_its_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    variables = environment(Placement("cpu", replicas=1, ranks=10_000))
    assert variables["DS_ACCELERATOR"] == "cpu"
    assert variables["OMP_NUM_THREADS"] == "1"


def test_a_chosen_number_of_threads_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environment(CPU)["OMP_NUM_THREADS"] == "7"


def test_ranks_on_gpus_keep_the_environment(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert "DS_ACCELERATOR" not in environment(Placement("cuda", replicas=1, ranks=2))


def test_ranks_on_a_cpu_wait_without_spinning_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment(CPU)["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert environment(CPU)["OMP_WAIT_POLICY"] == "active"
    assert environment(CPU)["DS_ACCELERATOR"] == "cpu"
