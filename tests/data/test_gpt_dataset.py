"""Windows, epochs and ranges of the sample stream."""

import time
from itertools import pairwise

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset
from megatron_gptx.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter


@pytest.fixture
def dataset(make_dataset):
    """101 different ids in documents of 0 to 9 tokens."""
    edges = np.cumsum([0, *[i % 10 for i in range(22)], 4, 0, 6])
    assert edges[-1] == 101
    return make_dataset([range(a, b) for a, b in pairwise(edges)])


@pytest.mark.parametrize("seq_length", [1, 2, 7, 10, 20, 33, 50, 99, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_token_of_an_epoch_is_an_input_once_up_to_the_documented_edge(
    dataset, seq_length, epoch
):
    samples = GPTDataset(dataset, seq_length, seed=3)
    n = samples.samples_per_epoch
    windows = np.stack([samples[epoch * n + i] for i in range(n)])
    inputs = windows[:, :-1].ravel()
    assert len(set(inputs.tolist())) == inputs.size
    assert 1 <= samples.num_tokens - inputs.size <= seq_length
    # Ids count up in the file, so each label is the next one, around the ring.
    assert np.array_equal(windows[:, 1:], (windows[:, :-1] + 1) % 101)


def test_without_shuffling_windows_come_in_file_order_and_repeat(dataset):
    samples = GPTDataset(dataset, 10, seed=3, shuffle=False)
    assert samples.samples_per_epoch == 10
    assert samples[0].tolist() == list(range(11))
    assert samples[9].tolist() == list(range(90, 101))
    assert samples[13].tolist() == list(range(30, 41))


def test_epochs_differ_in_order_and_in_windows(dataset):
    samples = GPTDataset(dataset, 10, seed=3)
    epochs = [[samples[e * 10 + i][0] for i in range(10)] for e in range(4)]
    cuts = [{first % 10 for first in epoch} for epoch in epochs]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(cut) for cut in cuts}) >= 3
    orders = {tuple(np.argsort(epoch)) for epoch in epochs}
    assert len(orders) == 4


def test_a_batch_across_epochs_equals_its_samples(dataset):
    samples = GPTDataset(dataset, 7, seed=3)
    batch = samples.read_samples(5, 40)
    alone = [GPTDataset(dataset, 7, seed=3)[5 + i] for i in range(40)]
    assert batch.dtype == np.int64
    assert np.array_equal(batch, np.stack(alone))


def test_the_seed_decides_the_order(dataset):
    first = GPTDataset(dataset, 5, seed=1).read_samples(0, 20)
    assert np.array_equal(first, GPTDataset(dataset, 5, seed=1).read_samples(0, 20))
    assert not np.array_equal(first, GPTDataset(dataset, 5, seed=2).read_samples(0, 20))


def test_a_range_of_documents_shows_no_token_of_another(make_dataset):
    dataset = make_dataset([[i] * 10 for i in range(10)])
    samples = GPTDataset(dataset, 4, seed=0, first_document=3, last_document=7)
    assert samples.num_tokens == 40
    assert set(samples.read_samples(0, 200).ravel().tolist()) == {3, 4, 5, 6}


def test_positions_far_ahead_need_nothing_before_them(dataset):
    samples = GPTDataset(dataset, 10, seed=3)
    assert samples[10**15].shape == (11,)


def test_too_few_tokens_for_a_sample_are_refused(make_dataset):
    dataset = make_dataset([[1] * 4, [2] * 4])
    assert GPTDataset(dataset, 7, seed=0).samples_per_epoch == 1
    with pytest.raises(UserError, match=r"documents 0 to 2 have 8 tokens.*seq_length \+ 1 = 9"):
        GPTDataset(dataset, 8, seed=0)
    with pytest.raises(UserError, match="documents 1 to 1 have 0 tokens"):
        GPTDataset(dataset, 1, seed=0, first_document=1, last_document=1)


def test_sequences_that_do_not_lie_back_to_back_give_the_same_samples(dataset, monkeypatch):
    expected = GPTDataset(dataset, 7, seed=3).read_samples(0, 40)
    monkeypatch.setattr(dataset, "_offsets", np.append(dataset.pointers // 2, 101))
    assert dataset.windows(8) is None
    assert np.array_equal(GPTDataset(dataset, 7, seed=3).read_samples(0, 40), expected)


def test_a_trillion_tokens_open_at_once_and_are_reached_anywhere(tmp_path):
    lengths = np.full(10**6, 10**6)
    writer = IndexedDatasetWriter(tmp_path / "huge", np.uint16)
    writer._add_entries(lengths, np.ones(10**6))
    try:
        writer._bin.truncate(2 * 10**12)  # a sparse file: holes read as zeros
    except OSError as error:
        writer.abort()
        pytest.skip(f"this file system has no such sparse files: {error}")
    writer.finalize()
    started_at = time.perf_counter()
    samples = GPTDataset(IndexedDataset(tmp_path / "huge"), 2048, seed=0)
    assert samples.samples_per_epoch == (10**12 - 1) // 2048
    assert samples[10**9].tolist() == [0] * 2049
    assert time.perf_counter() - started_at < 1
