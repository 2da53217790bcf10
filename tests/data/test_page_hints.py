"""What the system is told about reads changes nothing that is read."""

import mmap

import numpy as np
import pytest

from megatron_gptx.data import gpt_dataset, page_hints
from megatron_gptx.data.gpt_dataset import GPTDataset
from megatron_gptx.data.page_hints import announce, expect_scattered_reads


@pytest.fixture
def mapping(tmp_path, monkeypatch):
    monkeypatch.setattr(page_hints, "SMALL_FILE_BYTES", 0)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, 5000, 10**9])
def test_any_part_of_a_file_may_be_announced(mapping, num_bytes):
    expect_scattered_reads(mapping)
    announce(mapping, np.array([0, 1, 4095, 4096, len(mapping) - 1]), num_bytes)
    assert mapping[:] == bytes(range(256)) * 100


def test_an_empty_file_has_nothing_to_announce():
    expect_scattered_reads(b"")
    announce(b"", np.array([0]), 10)


def test_what_a_step_reads_is_announced_before_it_is_read(make_dataset, monkeypatch):
    dataset = make_dataset([[0] * 40, range(1000)])
    samples = GPTDataset(dataset, 10, seed=0, first_document=1)
    announced = []
    monkeypatch.setattr(
        gpt_dataset, "announce", lambda mapping, starts, size: announced.append((starts, size))
    )
    tokens = samples.read_samples(range(7)).tokens
    ((starts, num_bytes),) = announced
    assert num_bytes == 11 * 2
    assert np.array_equal(starts, (40 + tokens[:, 0]) * 2)
