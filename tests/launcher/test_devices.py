"""Where ranks go, on machines with any number of GPUs."""

import os

import pytest

from megatron_gptx.config.errors import ConfigError, UserError
from megatron_gptx.launcher.devices import (
    Placement,
    check_placement,
    count_gpus,
    describe,
    local_device,
    place,
)
from megatron_gptx.launcher.main import resolve
from tests.runs import tiny_config


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Make this a machine on which `nvidia-smi` lists some GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def machine(num_gpus: int) -> None:
        lines = "".join(f"echo 'GPU {i}: A card (UUID: GPU-{i})'\n" for i in range(num_gpus))
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return machine


@pytest.fixture
def configure(tmp_path):
    def configure(device: str = "auto", replicas: int | None = None, **options: object):
        return tiny_config(
            tmp_path,
            tmp_path / "run",
            launch__device=device,
            parallel__pipeline_stages=2,
            parallel__data_replicas=replicas,
            **options,
        )

    return configure


@pytest.fixture
def hosts(tmp_path, configure):
    """Place a run of two stages on the hosts of a hostfile."""

    def hosts(text: str | bytes, **options: object) -> Placement:
        path = tmp_path / "hosts"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return place(configure(launch__hostfile=str(path), **options))

    return hosts


def test_a_machine_without_gpus_gets_one_pipeline_on_the_cpu(machine, configure):
    machine(0)
    assert place(configure()) == Placement("cpu", replicas=1, ranks=2)


def test_without_the_drivers_program_there_are_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == 0


def test_replicas_left_open_fill_the_gpus(machine, configure):
    machine(5)
    assert place(configure()) == Placement("cuda", replicas=2, ranks=4)


def test_too_few_gpus_send_an_undecided_run_to_the_cpu(machine, configure):
    machine(3)
    assert place(configure(replicas=2)) == Placement("cpu", replicas=2, ranks=4)


def test_too_few_gpus_stop_a_run_that_insists_on_them(machine, configure):
    machine(3)
    with pytest.raises(ConfigError, match=r"4 GPU.* \(2 .* x 2 .*\), but there are 3"):
        place(configure("cuda", replicas=2))


def test_a_run_on_the_cpu_ignores_gpus(machine, configure):
    machine(8)
    assert place(configure("cpu")) == Placement("cpu", replicas=1, ranks=2)


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("6, 7", 2), ("0,-1,1", 1), ("0,1,2,3", 4)]
)
def test_hidden_gpus_do_not_count(machine, monkeypatch, visible, count):
    machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_one_process_needs_one_gpu_whatever_the_layout(machine, configure):
    machine(1)
    assert local_device(configure("cuda")) == "cuda"
    assert local_device(configure("auto")) == "cuda"
    assert local_device(configure("cpu")) == "cpu"
    machine(0)
    assert local_device(configure("auto")) == "cpu"


def test_one_process_that_insists_on_a_gpu_says_that_there_is_none(machine, configure):
    machine(0)
    with pytest.raises(ConfigError, match=r"launch\.device: is cuda, but this machine has no GPU"):
        local_device(configure("cuda"))


def test_a_hostfile_gives_its_slots(hosts):
    text = "# the cluster\nnode1 slots=2\n\n  node-2.example   slots=4  # the new one\n"
    assert hosts(text) == Placement("cuda", replicas=3, ranks=6)


def test_every_slot_of_a_hostfile_must_be_used(hosts):
    with pytest.raises(ConfigError, match=r"hosts has 5 slots.* for 4 ranks"):
        hosts("node1 slots=5\n")
    with pytest.raises(ConfigError, match=r"hosts has 8 slots.* for 4 ranks"):
        hosts("node1 slots=4\nnode2 slots=4\n", replicas=2)


def test_too_few_slots_do_not_send_a_run_to_the_cpu(hosts):
    with pytest.raises(ConfigError, match=r"hosts has 1 slots.* for 2 ranks"):
        hosts("node1 slots=1\n")


def test_hosts_may_have_their_ranks_on_the_cpu(hosts):
    placed = hosts("node1 slots=2\n", device="cpu")
    assert placed == Placement("cpu", replicas=1, ranks=2)


@pytest.mark.parametrize(
    "line",
    [
        "-oProxyCommand=touch${IFS}harm slots=1",
        "node1;reboot slots=1",
        "$(reboot) slots=1",
        "root@node1 slots=1",
        "node1 slots=1; reboot",
        "node1 slots=0",
        "node1 slots=-1",
        "node1 slots=1e3",
        "node1",
        "node1 slots=4",
    ],
)
def test_a_hostile_line_of_a_hostfile_is_refused_with_its_place(hosts, line):
    with pytest.raises(UserError, match=r"hosts:3: "):
        hosts(f"# hosts\nnode1 slots=2\n{line}\n")


@pytest.mark.parametrize("text", ["", "# nothing\n", b"\xff\xfe slots=1\n"])
def test_a_hostfile_without_hosts_is_refused(hosts, text):
    with pytest.raises(UserError, match="hosts"):
        hosts(text)


def test_a_missing_hostfile_is_refused(configure):
    with pytest.raises(
        UserError, match=r"launch.hostfile: /.*/nowhere cannot be read: No such file"
    ):
        place(configure(launch__hostfile="nowhere"))


def test_the_decided_replicas_are_part_of_the_configuration(machine, configure):
    machine(4)
    config, placement = resolve(configure())
    assert config.parallel.data_replicas == placement.replicas == 2


def test_a_batch_that_does_not_fit_the_decided_replicas_is_refused(machine, configure):
    machine(6)
    with pytest.raises(ConfigError, match=r"3 replicas fit .* nearest valid global_batch_size"):
        resolve(configure())


def test_a_launcher_that_is_not_installed_is_refused(tmp_path, configure, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = configure(launch__hostfile="hosts", launch__launcher="slurm")
    with pytest.raises(ConfigError, match=r"'srun', which is not installed"):
        check_placement(config, Placement("cuda", replicas=1, ranks=2))


def test_a_run_on_the_cpu_that_nobody_asked_for_says_why(machine, configure):
    machine(1)
    assert "2 GPU(s) are needed and 1 are here" in describe(configure(), place(configure()))
    assert describe(configure("cpu"), place(configure("cpu"))) == "on the CPU"


def test_fp16_is_refused_on_a_cpu_and_accepted_on_gpus(configure):
    config = configure(precision="fp16")
    check_placement(config, Placement("cuda", replicas=1, ranks=1))
    with pytest.raises(ConfigError, match="fp16 trains on GPUs only"):
        check_placement(config, Placement("cpu", replicas=1, ranks=1))


@pytest.mark.parametrize(("gpus", "overlay"), [(0, "cpu.yml"), (1, "one-gpu.yml")])
def test_a_refused_fp16_names_the_overlay_that_helps_here(machine, configure, gpus, overlay):
    machine(gpus)
    config = configure(precision="fp16")
    with pytest.raises(ConfigError, match=f"configs/overlays/{overlay}"):
        check_placement(config, Placement("cpu", replicas=1, ranks=2))
