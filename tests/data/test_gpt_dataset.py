"""Samples, epochs and ranges of the sample stream."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.mmididx import HEADER, MAGIC


@pytest.fixture
def dataset(make_dataset):
    """101 different ids in documents of 0 to 9 tokens."""
    edges = np.cumsum([0, *[i % 10 for i in range(22)], 4, 0, 6])
    assert edges[-1] == 101
    return make_dataset([range(a, b) for a, b in pairwise(edges)])


def read_epoch(samples, epoch):
    n = samples.samples_per_epoch
    return samples.read_samples(epoch * n + np.arange(n))


@pytest.mark.parametrize("seq_length", [1, 2, 7, 10, 20, 33, 50, 99, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_token_of_an_epoch_is_an_input_exactly_once(dataset, seq_length, epoch):
    tokens, labels, row_start = read_epoch(GPTDataset(dataset, seq_length, seed=3), epoch)
    learned = labels != IGNORE
    assert sorted(tokens[learned].tolist()) == list(range(101))
    # Ids count up in the file, so each label is the next one, around the ring.
    assert np.array_equal(labels[learned], (tokens[learned] + 1) % 101)
    # Only the last sample of an epoch may be shorter.
    assert learned[:-1].all()
    assert row_start is None


@pytest.mark.parametrize("case", range(40))
def test_so_it_is_for_any_documents_lengths_and_epochs(make_dataset, case):
    random = np.random.default_rng(case)
    seq_length, num_documents = (int(n) for n in random.integers(1, 40, 2))
    lengths = random.integers(0, 30, num_documents)
    lengths[0] += max(0, seq_length + 1 - lengths.sum())  # enough for a sample
    edges = np.cumsum([0, *lengths])
    dataset = make_dataset([range(a, b) for a, b in pairwise(edges)])
    isolated = bool(case % 2)
    samples = GPTDataset(
        dataset, seq_length, seed=case, shaping=Shaping(isolate_documents=isolated)
    )
    for epoch in random.integers(0, 10**6, 3).tolist():
        tokens, labels, _ = read_epoch(samples, epoch)
        learned = labels != IGNORE
        # With isolation, the last token of each document is shown, and nothing learned from it.
        ends = set((edges[1:][lengths > 0] - 1).tolist()) if isolated else set()
        assert sorted(tokens[learned].tolist()) == sorted(set(range(edges[-1])) - ends)


def test_without_shuffling_samples_come_in_file_order_and_repeat(dataset):
    samples = GPTDataset(dataset, 10, seed=3, shuffle=False)
    assert samples.samples_per_epoch == 11
    tokens, labels, _ = samples.read_samples([0, 9, 10, 14])
    assert tokens[[0, 1, 3]].tolist() == [[*range(a, a + 10)] for a in (0, 90, 30)]
    assert labels[[0, 1, 3]].tolist() == [[*range(a, a + 10)] for a in (1, 91, 31)]
    assert tokens[2].tolist() == [100] + [0] * 9
    assert labels[2].tolist() == [0] + [IGNORE] * 9


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_tokens_are_counted_over_epochs(dataset, packing):
    samples = GPTDataset(dataset, 7, seed=3, shaping=Shaping(packing))
    n = samples.samples_per_epoch
    assert [samples.count_tokens(i * n) for i in range(4)] == [0, 101, 202, 303]
    counts = [samples.count_tokens(i) for i in range(3 * n)]
    assert counts == sorted(counts)
    if packing == "stream":
        assert counts[: n + 2] == [*range(0, 7 * n, 7), 101, 108]


def test_epochs_differ_in_order_and_in_windows(dataset):
    samples = GPTDataset(dataset, 10, seed=3)
    epochs = [read_epoch(samples, e).tokens[:-1, 0].tolist() for e in range(4)]
    cuts = [{first % 10 for first in epoch} for epoch in epochs]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(cut) for cut in cuts}) >= 3
    orders = {tuple(np.argsort(epoch)) for epoch in epochs}
    assert len(orders) == 4


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_samples_read_together_equal_samples_read_alone(dataset, packing):
    shaping = Shaping(packing, isolate_documents=True)
    samples = GPTDataset(dataset, 7, seed=3, shaping=shaping)
    positions = np.arange(5, 45)[::-1]
    together = samples.read_samples(positions)
    alone = [GPTDataset(dataset, 7, seed=3, shaping=shaping).read_samples([i]) for i in positions]
    assert together.tokens.dtype == together.labels.dtype == np.int64
    for part, rows in zip(together, zip(*alone, strict=True), strict=True):
        if part is None:
            assert packing == "document"
        else:
            assert np.array_equal(part, np.concatenate(rows))


def test_an_order_longer_than_a_block_is_the_same_in_pieces(make_dataset):
    dataset = make_dataset([range(3000)])
    together = GPTDataset(dataset, 4, seed=3).read_samples(np.arange(2000))
    samples = GPTDataset(dataset, 4, seed=3)
    for at in (1999, 300, 0, 700, 250):
        assert np.array_equal(samples.read_samples([at]).tokens[0], together.tokens[at])
    assert len(set(together.tokens[:750].ravel().tolist())) == 3000


def test_the_seed_decides_the_order(dataset):
    first = GPTDataset(dataset, 5, seed=1).read_samples(range(20)).tokens
    again = GPTDataset(dataset, 5, seed=1).read_samples(range(20)).tokens
    assert np.array_equal(first, again)
    other = GPTDataset(dataset, 5, seed=2).read_samples(range(20)).tokens
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_a_range_of_documents_shows_no_token_of_another(make_dataset, packing):
    dataset = make_dataset([[i] * 10 for i in range(10)])
    samples = GPTDataset(
        dataset, 4, seed=0, first_document=3, last_document=7, shaping=Shaping(packing)
    )
    assert samples.num_tokens == 40
    tokens, labels, _ = samples.read_samples(range(200))
    learned = labels != IGNORE
    assert set(tokens[learned].tolist()) == set(labels[learned].tolist()) == {3, 4, 5, 6}


def test_positions_far_ahead_need_nothing_before_them(dataset):
    samples = GPTDataset(dataset, 10, seed=3)
    assert samples.read_samples([10**15]).tokens.shape == (1, 10)


def test_too_few_tokens_for_a_sample_are_refused(make_dataset):
    dataset = make_dataset([[1] * 4, [2] * 4])
    assert GPTDataset(dataset, 7, seed=0).samples_per_epoch == 2
    with pytest.raises(UserError, match=r"documents 0 to 2 have 8 tokens.*seq_length \+ 1 = 9"):
        GPTDataset(dataset, 8, seed=0)
    with pytest.raises(UserError, match="documents 1 to 1 have 0 tokens"):
        GPTDataset(dataset, 1, seed=0, first_document=1, last_document=1)
    ones = make_dataset([[1], [2]], name="ones")
    with pytest.raises(UserError, match="2 tokens, but with packing document one sample takes 2"):
        GPTDataset(ones, 8, seed=0, shaping=Shaping("document"))


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_sequences_that_do_not_lie_back_to_back_give_the_same_samples(
    dataset, monkeypatch, packing
):
    shaping = Shaping(packing, isolate_documents=True)
    expected = GPTDataset(dataset, 7, seed=3, shaping=shaping).read_samples(range(40))
    monkeypatch.setattr(dataset, "_offsets", np.append(dataset.pointers // 2, 101))
    assert dataset.windows(8) is None
    found = GPTDataset(dataset, 7, seed=3, shaping=shaping).read_samples(range(40))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_trillion_tokens_open_and_are_reached_anywhere_in_a_few_megabytes(tmp_path, isolate):
    prefix = write_sparse(tmp_path / "huge", num_documents=10**6, length=10**6)
    tracemalloc.start()
    try:
        samples = GPTDataset(
            IndexedDataset(prefix), 2048, seed=0, shaping=Shaping(isolate_documents=isolate)
        )
        assert samples.samples_per_epoch == -(-(10**12) // 2048)
        for position in (0, 10**9, 10**15):
            assert samples.read_samples([position]).tokens.tolist() == [[0] * 2048]
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def write_sparse(prefix, *, num_documents, length):
    """Write an index of equal documents, and a .bin that is one hole: it reads as zeros."""
    pointers = 2 * length * np.arange(num_documents, dtype="<i8")
    with prefix.with_suffix(".idx").open("wb") as index:
        index.write(HEADER.pack(MAGIC, 1, 8, num_documents, num_documents + 1))
        index.write(np.full(num_documents, length, "<i4").tobytes())
        index.write(pointers.tobytes())
        index.write(np.arange(num_documents + 1, dtype="<i8").tobytes())
    try:
        with prefix.with_suffix(".bin").open("wb") as tokens:
            tokens.truncate(2 * length * num_documents)
    except OSError as error:
        pytest.skip(f"this file system has no such sparse files: {error}")
    return prefix


def test_labels_of_a_dataset_of_their_own_replace_the_tokens(make_dataset):
    lengths = [5, 0, 9, 30, 1, 12]
    ends = np.cumsum(lengths)
    documents = [range(b - n, b) for n, b in zip(lengths, ends, strict=True)]
    labels = [[-100 if i % 3 == 0 else 1000 + i for i in document] for document in documents]
    dataset = make_dataset(documents)
    answers = make_dataset(labels, name="labels", dtype=np.int32)
    for packing in ("stream", "until_overflow", "document"):
        plain = GPTDataset(dataset, 8, seed=0, shaping=Shaping(packing))
        samples = GPTDataset(dataset, 8, seed=0, shaping=Shaping(packing), labels=answers)
        positions = np.arange(plain.samples_per_epoch)
        before, after = plain.read_samples(positions), samples.read_samples(positions)
        assert np.array_equal(before.tokens, after.tokens)
        learned = (before.labels != IGNORE) & (before.labels % 3 != 0)
        assert np.array_equal(after.labels != IGNORE, learned)
        assert np.array_equal(after.labels[learned], 1000 + before.labels[learned])


def test_labels_of_other_lengths_are_refused(make_dataset):
    dataset = make_dataset([range(20), range(10)])
    for name, documents in (("short", [range(20), range(9)]), ("other", [range(10), range(20)])):
        labels = make_dataset(documents, name=name)
        with pytest.raises(UserError, match=f"{name}: not the labels of .*tokens"):
            GPTDataset(dataset, 8, seed=0, labels=labels)
