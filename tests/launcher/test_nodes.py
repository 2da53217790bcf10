"""What other hosts get before their ranks start, and hosts that cannot be reached."""

import os
import signal
import sys
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.launcher import processes
from megatron_gptx.launcher.nodes import check_reachable, forward
from megatron_gptx.launcher.stop_requests import StopRequests
from tests.runs import tiny_config

# Knows one host only; what ssh says of others stands on its last line.
SSH = """#!/bin/sh
for word; do host=$previous; previous=$word; done
[ "$host" = node1 ] && exit 0
echo "Warning: something else" >&2
echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
exit 255
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\nnode3 slots=1\n")
    return tiny_config(tmp_path, tmp_path / "run", launch__hostfile=str(tmp_path / "hosts"))


def passed_on(variables: dict[str, str]) -> dict[str, str]:
    lines = Path(variables["DS_ENV_FILE"]).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_ranks_of_other_hosts_get_what_ranks_here_would_get(config, tmp_path):
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "3", "PYTHONPATH": "/site", "X": "y"}
    runner = forward(config, variables, Path("/root"))
    assert passed_on(runner) == {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "3",
        "GPTX_HOSTS": "node1:node2:node3",
        "PYTHONPATH": "/root:/site",
        "PYTHONSAFEPATH": "1",
    }
    assert runner.items() >= variables.items()
    assert runner["DS_ENV_FILE"] == str(tmp_path / "run" / "logs" / "environment")


def test_what_a_user_passes_on_comes_first(config, tmp_path):
    (tmp_path / ".deepspeed_env").write_text(
        "OMP_NUM_THREADS=7\nNCCL_DEBUG=INFO\nPYTHONPATH=/mine\n"
    )
    passed = passed_on(forward(config, {"OMP_NUM_THREADS": "3"}, Path("/root")))
    assert (passed["OMP_NUM_THREADS"], passed["NCCL_DEBUG"]) == ("7", "INFO")
    assert passed["PYTHONPATH"] == "/root:/mine"


def test_a_value_that_a_shell_would_act_on_is_not_passed_on(config):
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME="):
        forward(config, {"GLOO_SOCKET_IFNAME": "$(touch harm)"}, Path("/root"))


def test_ssh_notices_a_host_that_is_gone_and_asks_nothing(config):
    runner = forward(config, {"PDSH_SSH_ARGS_APPEND": "-p 2222"}, Path("/root"))
    words = runner["PDSH_SSH_ARGS_APPEND"]
    assert words.startswith("-p 2222 ")
    assert "ServerAliveInterval=" in words
    assert "BatchMode=yes" in words


def test_all_hosts_that_cannot_be_reached_are_named_before_anything_starts(
    config, tmp_path, monkeypatch
):
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    with pytest.raises(UserError) as caught:
        check_reachable(config)
    assert str(caught.value).splitlines() == [
        f"2 of the 3 hosts of {tmp_path}/hosts cannot be reached by ssh:",
        "  node2: ssh: Could not resolve hostname node2: Name or service not known",
        "  node3: ssh: Could not resolve hostname node3: Name or service not known",
        "try `ssh HOST true`, which must ask nothing",
    ]
    other = config.launch.model_copy(update={"launcher": "slurm"})
    check_reachable(config.model_copy(update={"launch": other}))


def test_arguments_of_a_user_for_ssh_are_used_to_ask_the_hosts(config, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1 $2" = "-p 2222" ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    check_reachable(config)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p '2222")
    with pytest.raises(UserError, match="PDSH_SSH_ARGS_APPEND cannot be split"):
        check_reachable(config)


def test_without_ssh_it_is_said(config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="node1: ssh cannot be started: No such file"):
        check_reachable(config)


@pytest.mark.parametrize("code", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN);"])
def test_a_runner_that_waits_for_a_lost_host_is_ended_some_time_after_a_failure(
    tmp_path, monkeypatch, code
):
    monkeypatch.setattr(processes, "AFTER_FAILURE_SECONDS", 0.1)
    (tmp_path / "failed").touch()
    status = processes.run_ranks(
        [sys.executable, "-c", f"import signal, time; {code} time.sleep(600)"],
        environment=dict(os.environ),
        folder=tmp_path,
        requests=StopRequests(),
        last_signal=signal.SIGTERM,
        patience_seconds=0,
        failure=tmp_path / "failed",
    )
    assert status == 1
