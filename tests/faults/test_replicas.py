"""A bit that one replica has lost is found, and named, before it is saved."""

import re

import pytest
import torch

from megatron_gptx.training.replica_check import checksum
from tests.pairs import extended
from tests.runs import start, tiny_config

LAYOUTS = {
    "DP 2": {"parallel__data_replicas": 2},
    "DP 3": {"parallel__data_replicas": 3, "training__global_batch_size": 6},
    "DP 2, bf16, ZeRO 1": {"parallel__data_replicas": 2, "precision": "bf16"},
    "DP 2, ZeRO 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 2},
}


@pytest.mark.parametrize(
    ("layout", "every"),
    [
        ("DP 2", 5),
        ("DP 3", 1000),
        ("DP 2, bf16, ZeRO 1", 1000),
        ("DP 2, ZeRO 2", 5),
        extended("DP 2", 1000),
        extended("DP 3", 5),
        extended("DP 2, bf16, ZeRO 1", 5),
        extended("DP 2, ZeRO 2", 1000),
    ],
)
def test_a_flipped_bit_ends_the_run_and_is_not_saved(corpus, tmp_path, monkeypatch, layout, every):
    # At the step of a comparison: with ZeRO the next step would bring the replicas together again.
    monkeypatch.setenv("GPTX_FAULT", "flip:at=weights:rank=1:step=4")
    config = tiny_config(
        corpus,
        tmp_path / "run",
        **LAYOUTS[layout],
        training__steps=8,
        training__check_replicas=every,
        checkpoint__interval=5,
    )
    statuses = start(config, screen=tmp_path / "screen")
    assert 1 in statuses
    said = (tmp_path / "screen").read_text()
    ranks = "rank 1" if layout == "DP 3" else "ranks 0, 1"
    message = rf"1 of \d+ parameters differ, the first is layer 6, weight, on {ranks};"
    assert re.search(message, said), said
    assert said.count("error") == 1
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replicas_that_are_well_are_left_alone(finished, layout):
    options = {**LAYOUTS[layout], "training__steps": 3, "training__check_replicas": 1}
    assert len(finished(**options).rows) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_flipped_bit_and_any_exchange_changes_the_checksum(dtype):
    weights = torch.randn(40).to(dtype)
    before = int(checksum(weights))
    assert int(checksum(weights.clone())) == before
    raw = weights.view({4: torch.int32, 2: torch.int16}[dtype.itemsize])
    for place in range(40):
        for bit in range(dtype.itemsize * 8 - 1):
            raw[place] ^= 1 << bit
            assert int(checksum(weights)) != before
            raw[place] ^= 1 << bit
    weights[[3, 4]] = weights[[4, 3]]
    assert int(checksum(weights)) != before


def test_the_checksum_of_a_long_tensor_is_that_of_its_parts(monkeypatch):
    weights = torch.randn(1000)
    whole = int(checksum(weights))
    monkeypatch.setattr("megatron_gptx.training.replica_check.CHUNK", 7)
    assert int(checksum(weights)) == whole
