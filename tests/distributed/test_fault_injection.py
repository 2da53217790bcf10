"""Faults strike where they are aimed, and nowhere else."""

import errno

import pytest

from megatron_gptx.distributed.fault_injection import InjectedError, fault_point


@pytest.fixture(autouse=True)
def rank_1(monkeypatch):
    monkeypatch.setenv("RANK", "1")


def test_without_the_variable_nothing_happens(monkeypatch):
    monkeypatch.delenv("GPTX_FAULT", raising=False)
    fault_point("manifest", step=8)


@pytest.mark.parametrize(
    "conditions",
    ["at=save", "at=manifest:rank=0", "at=manifest:step>=9", "at=manifest:step=7"],
)
def test_a_fault_that_is_aimed_elsewhere_does_nothing(monkeypatch, conditions):
    monkeypatch.setenv("GPTX_FAULT", f"error:{conditions}")
    fault_point("manifest", step=8)


@pytest.mark.parametrize(
    "conditions", ["", ":rank=1", ":step=8", ":step>=8", ":step>=7:rank=1", ":who=rank"]
)
def test_a_fault_strikes_where_every_condition_holds(monkeypatch, conditions):
    monkeypatch.setenv("GPTX_FAULT", f"error:at=elsewhere error:at=manifest{conditions}")
    with pytest.raises(InjectedError, match="'manifest'"):
        fault_point("manifest", step=8)


def test_a_full_disk_looks_like_one(monkeypatch):
    monkeypatch.setenv("GPTX_FAULT", "full:at=manifest")
    with pytest.raises(OSError, match="No space left") as caught:
        fault_point("manifest")
    assert caught.value.errno == errno.ENOSPC


def test_once_is_once(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTX_FAULT", f"error:at=manifest:once={tmp_path / 'struck'}")
    with pytest.raises(InjectedError):
        fault_point("manifest")
    fault_point("manifest")


@pytest.mark.parametrize("fault", ["burn:at=save", "kill", "kill:rank=1", "kill:at=x:color=red"])
def test_a_misspelt_fault_is_an_error(monkeypatch, fault):
    monkeypatch.setenv("GPTX_FAULT", fault)
    with pytest.raises(ValueError, match="is no fault"):
        fault_point("save")
