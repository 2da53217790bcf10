"""What a launch would fail by is found before it: all at once, and nothing is left behind."""

import os
import re
import socket
from pathlib import Path

import pytest

from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.launcher.checks import launch_checks
from megatron_gptx.launcher.main import main
from tests.config.broken_launches import save
from tests.runs import tiny_config


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """Make a launch of the tiny configuration with some options, and return status and screens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('started')")

    def run(capfd, *words: str, **options):
        Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run", **options)))
        before = sorted(tmp_path.rglob("*"))
        status = main(["train.py", "tiny.yml", *words], tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        return status, *capfd.readouterr()

    return run


def problems(config, *, fresh_may_go_on):
    for check in launch_checks(config, ["train.py"], fresh_may_go_on=fresh_may_go_on):
        yield from check()


@pytest.mark.parametrize(
    "options",
    [
        {"data__train": "nowhere"},
        {"model__vocab_size": 63},
        {"output__run_dir": ""},
        {"output__run_dir": "tiny.yml"},
        {"precision": "fp16"},
        {"launch__device": "cuda", "parallel__data_replicas": 99},
        {"launch__device": "auto", "launch__hostfile": "nowhere"},
    ],
)
def test_a_dry_run_ends_as_the_launch_would(run, capfd, options):
    launched, dry = run(capfd, **options), run(capfd, "--dry-run", **options)
    assert launched == dry
    status, shown, said = dry
    assert (status, shown) == (2, "")
    assert re.match(r"tiny\.yml has [12] problems?:\n  line ", said)


def test_a_port_that_another_program_has_is_named(run, capfd):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, said = run(capfd, "--dry-run", launch__master_port=port)
        assert status == 2
        assert f"launch.master_port: port {port} of this machine cannot be used" in said
    assert run(capfd, "--dry-run", launch__master_port=port)[0] == 0


def test_a_feed_forward_as_wide_as_its_default_is_the_same_model(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    save()  # with ffn_hidden_size null, which means 2 * 32
    assert run(capfd, "--dry-run", model__ffn_hidden_size=64)[0] == 0
    status, _, said = run(capfd, "--dry-run", model__ffn_hidden_size=65)
    assert status == 2
    assert "model.ffn_hidden_size: is 65, but the model in " in said
    assert "step-00000010 has 64; take that value" in said


def test_an_older_manifest_gets_the_defaults_of_newer_options(run, capfd, tmp_path, corpus):
    config = tiny_config(corpus, tmp_path / "run")
    Path("tiny.yml").write_text(dump(config))
    older = config.model.model_dump()
    del older["tied_head"]
    save(config={**config.model_dump(), "model": older})
    assert run(capfd, "--dry-run")[0] == 0
    assert run(capfd, "--dry-run", model__tied_head=True)[0] == 2


def test_a_launch_that_may_go_on_from_its_own_checkpoints_is_not_refused(
    run, capfd, tmp_path, corpus
):
    config = tiny_config(corpus, tmp_path / "run", checkpoint__start="fresh")
    Path("tiny.yml").write_text(dump(config))
    save()
    assert run(capfd, "--dry-run", checkpoint__start="fresh")[0] == 2
    assert not list(problems(config, fresh_may_go_on=True))


def test_an_intact_manifest_among_damaged_ones_is_enough_for_intact(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    save(10)
    (save(20) / "manifest.json").write_text("{")
    assert run(capfd, "--dry-run")[0] == 2
    assert run(capfd, "--dry-run", checkpoint__start="intact")[0] == 0


def test_intact_looks_at_the_checkpoint_that_the_ranks_would_take(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    kept = save(10)
    save(20, latest=kept.name, model={"tied_head": True})  # a future that was given up
    assert run(capfd, "--dry-run", checkpoint__start="intact")[0] == 0
    status, _, said = run(capfd, "--dry-run", checkpoint__start="intact", training__seed=7)
    assert (status, "step-00000010 is of another experiment" in said) == (2, True)
    # A run that has begun anew has none yet, and ranks take none of the old ones.
    (tmp_path / "run" / "checkpoints" / "latest").write_text("none\n")
    assert run(capfd, "--dry-run", checkpoint__start="intact", training__seed=7)[0] == 0


def test_another_experiment_is_found_before_a_process_starts(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    save()
    options = {"training__seed": 7, "data__packing": "document"}
    status, _, said = run(capfd, "--dry-run", **options)
    assert status == 2
    assert "training.seed: 1234 in the checkpoint, 7 in the configuration; " in said
    assert "data.packing: stream in the checkpoint, document in the configuration; " in said
    assert run(capfd, "--dry-run", **options, checkpoint__accept_changes=True)[0] == 0


def test_a_start_is_found_wrong_before_a_process_starts(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    (save(10), save(20))
    (tmp_path / "run" / "checkpoints" / "step-00000020" / "manifest.json").write_text("{")
    assert run(capfd, "--dry-run", checkpoint__start="step-10")[0] == 0
    status, _, said = run(capfd, "--dry-run", checkpoint__start="step-7")
    assert status == 2
    assert "checkpoint.start: " in said
    assert "holds no checkpoint of step 7" in said


def test_weights_to_begin_with_are_found_wrong_before_a_process_starts(
    run, capfd, tmp_path, corpus
):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    source = save().parents[1].rename(tmp_path / "other")
    options = {"checkpoint__initialize_from": str(source), "training__seed": 7}
    assert run(capfd, "--dry-run", **options, model__seq_length=64)[0] == 0
    status, _, said = run(capfd, "--dry-run", **options, model__hidden_size=64)
    assert status == 2
    assert "model.hidden_size: 32 in the checkpoint, 64 in the configuration" in said
    options["checkpoint__initialize_from"] = "nowhere"
    status, _, said = run(capfd, "--dry-run", **options)
    assert status == 2
    assert "checkpoint.initialize_from: nowhere holds no checkpoint" in said
    options["checkpoint__initialize_from"] = "x" * 5000
    status, _, said = run(capfd, "--dry-run", **options)
    assert (status, "cannot be read: File name too long" in said) == (2, True)


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Let `ssh -G` know some hosts by other names or ways."""

    def ssh(**answers: str) -> None:
        lines = "".join(f"[ $2 = {host} ] && echo '{text}'\n" for host, text in answers.items())
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}true\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return ssh


def test_a_host_that_only_ssh_knows_is_known(tmp_path, corpus, ssh):
    ssh(
        alias="hostname 127.0.0.1",
        behind="proxyjump gate.invalid",
        wrong="hostname no-such-host.invalid",
    )
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\nlocalhost slots=1\nalias slots=1\nbehind slots=1\nwrong slots=1\n")
    config = tiny_config(corpus, tmp_path / "run", launch__hostfile=str(hosts))
    (problem,) = problems(config, fresh_may_go_on=False)
    assert problem.key == "launch.hostfile"
    assert problem.message.startswith(f"{hosts}:5: no address is known here for the host 'wrong'")


def test_hosts_of_slurm_need_no_address_here_but_the_one_to_meet_at(tmp_path, corpus, ssh):
    ssh()
    hosts = tmp_path / "hosts"
    hosts.write_text("first.invalid slots=1\nsecond.invalid slots=1\n")
    options = {"launch__hostfile": str(hosts), "launch__launcher": "slurm"}
    config = tiny_config(corpus, tmp_path / "run", **options)
    (problem,) = problems(config, fresh_may_go_on=False)
    assert problem.message.startswith(f"{hosts}:1: no address is known here for the host 'first.")
    config = tiny_config(corpus, tmp_path / "run", **options, launch__master_addr="127.0.0.1")
    assert not list(problems(config, fresh_may_go_on=False))


def test_words_and_variables_that_a_remote_shell_would_read_are_found(
    tmp_path, corpus, monkeypatch
):
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    config = tiny_config(corpus, tmp_path / "run", launch__hostfile=str(hosts))
    monkeypatch.setenv("NCCL_COMMENT", "$(reboot)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    folder, variable = problems(config, fresh_may_go_on=False)
    assert folder.key == variable.key == "launch.hostfile"
    assert "a b' would pass through the shells of other nodes" in folder.message
    assert "NCCL_COMMENT" in variable.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_that_may_not_be_written_is_found(run, capfd, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    status, _, said = run(capfd, output__run_dir="closed/run")
    assert status == 2
    assert "cannot be written: you may not write into" in said


def test_a_link_to_nothing_is_no_run_folder(run, capfd, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    status, _, said = run(capfd, output__run_dir="link")
    assert status == 2
    assert "link is a link to nothing" in said


def test_another_optimizer_is_found_before_a_process_starts(run, capfd, tmp_path, corpus):
    Path("tiny.yml").write_text(dump(tiny_config(corpus, tmp_path / "run")))
    save()
    status, _, said = run(capfd, "--dry-run", optimizer__name="lion")
    assert status == 2
    assert re.search(
        r"line \d+: optimizer\.name: is lion, but run/checkpoints/step-00000010 holds the state of "
        r"adamw; set optimizer\.name: adamw to resume, or choose another output\.run_dir and begin "
        r"with the weights alone: checkpoint\.initialize_from: run/checkpoints/step-00000010",
        said.replace(f"{tmp_path}/", ""),
    )
    assert run(capfd, "--dry-run", optimizer__name="adamw")[0] == 0
