"""A stopped job of SLURM's is started again, and everything else is said before it starts."""

import os
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.distributed.exit_status import MISTAKE, STOPPED
from megatron_gptx.launcher.main import main
from megatron_gptx.launcher.slurm import requeue, slurm_job
from tests.runs import tiny_config, write_corpus

ROOT = Path(__file__).resolve().parents[2]
SCONTROL = """#!/bin/sh
echo "$@" > {folder}/asked
echo "not today" >&2
exit {status}
"""
# Ranks that say that they have stopped.
STOPS = """
import os, pathlib, sys
from megatron_gptx.launcher.command_line import decode
run_dir = pathlib.Path(decode(sys.argv[2]).output.run_dir)
(run_dir / "logs" / ".stopped").write_text("stopped by a test")
os._exit(75)
"""


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a program of that name first on the path."""

    def scontrol(status: int = 0) -> None:
        program = tmp_path / "scontrol"
        program.write_text(SCONTROL.format(folder=tmp_path, status=status))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return scontrol


def test_a_stopped_run_asks_slurm_to_start_its_job_again(tmp_path, monkeypatch, scontrol, capfd):
    scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_corpus(tmp_path)
    (tmp_path / "train.py").write_text(STOPS)
    (tmp_path / "tiny.yml").write_text(dump(tiny_config(tmp_path, tmp_path / "run")))
    status = main(["train.py", str(tmp_path / "tiny.yml"), "--requeue"], tmp_path)
    assert status == STOPPED
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    shown = capfd.readouterr().out
    assert shown.endswith("stopped by a test\nSLURM will start job 17 again\n")


def test_slurms_refusal_is_shown(scontrol, capsys):
    scontrol(status=1)
    requeue("17")
    assert capsys.readouterr().err == "error: scontrol requeue 17 failed: not today\n"


@pytest.mark.parametrize("job", ["", "17; id", "--all", "17\n", "\u0661"])
def test_outside_a_job_nothing_starts(monkeypatch, scontrol, job):
    scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", job)
    with pytest.raises(UserError, match="use it in a script that sbatch has started"):
        slurm_job()


def test_without_slurms_program_nothing_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="scontrol, which is not installed here"):
        slurm_job()


def test_generation_is_not_started_again(tmp_path, capsys):
    (tmp_path / "generate.py").touch()
    (tmp_path / "tiny.yml").write_text(dump(tiny_config(tmp_path, tmp_path / "run")))
    assert main(["generate.py", str(tmp_path / "tiny.yml"), "--requeue"], tmp_path) == MISTAKE
    assert "--requeue is for scripts that train" in capsys.readouterr().err
