"""Three ways to cut documents into samples, against the plainest code that does the same."""

import numpy as np
import pytest

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data import document_index, packing
from megatron_gptx.data.document_index import DocumentIndex
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping

L = 6
GROUP = 64


def random_lengths(seed, count=300):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 12, count)
    lengths[random.integers(0, count, count // 10)] = random.integers(13, 60, count // 10)
    lengths[random.integers(0, count, count // 4)] = random.integers(0, 2, count // 4)
    return lengths


@pytest.fixture(params=range(6))
def lengths(request):
    return random_lengths(request.param)


@pytest.fixture
def dataset(make_dataset, lengths):
    """Documents whose ids count up through the file, so that an id says where it stands."""
    ends = np.cumsum(lengths)
    return make_dataset([range(end - n, end) for n, end in zip(lengths, ends, strict=True)])


def plain_overflow(lengths):
    """Pack a group of documents, token by token."""
    samples = []
    for at in range(0, len(lengths), GROUP):
        first = sum(lengths[:at])
        ends = first + np.cumsum(lengths[at : at + GROUP])
        begin = first
        while ends[-1] - begin >= 2:
            fitting = [int(end) for end in ends if begin < end <= begin + L + 1]
            if fitting and fitting[-1] - begin >= 2:
                samples.append((begin, fitting[-1]))
                begin = fitting[-1]
            else:
                samples.append((begin, begin + L + 1))
                begin += L
    return samples


def plain_documents(lengths):
    samples = []
    for end, length in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
        begin = end - length
        while end - begin >= 2:
            samples.append((begin, min(begin + L + 1, end)))
            begin += L
    return samples


@pytest.mark.parametrize(
    ("mode", "plain"), [("until_overflow", plain_overflow), ("document", plain_documents)]
)
def test_an_epoch_has_the_samples_that_plain_code_packs(dataset, lengths, mode, plain, monkeypatch):
    monkeypatch.setattr(packing, "_GROUPS_AT_ONCE", 2)
    samples = GPTDataset(dataset, L, seed=0, shaping=Shaping(mode))
    expected = plain(lengths)
    assert samples.samples_per_epoch == len(expected)
    orders = []
    for epoch in (0, 3):
        positions = epoch * len(expected) + np.arange(len(expected))
        tokens, labels, row_start = samples.read_samples(positions)
        assert row_start is None
        found = []
        for inputs, outputs in zip(tokens, labels, strict=True):
            inputs, outputs = inputs[outputs != IGNORE], outputs[outputs != IGNORE]
            assert np.array_equal(inputs[1:], outputs[:-1])
            found.append((int(inputs[0]), int(outputs[-1]) + 1))
        orders.append(found)
        assert sorted(found) == expected
    assert orders[0] != orders[1] != expected  # each epoch is shuffled anew


def test_until_overflow_shows_every_token_of_a_document_that_has_a_neighbour(dataset, lengths):
    samples = GPTDataset(dataset, L, seed=0, shaping=Shaping("until_overflow"))
    tokens, labels, _ = samples.read_samples(range(samples.samples_per_epoch))
    learned = labels != IGNORE
    seen = set(tokens[learned].tolist()) | set(labels[learned].tolist())
    # What is left out is one token at the end of a group: too little to predict anything.
    missing = sorted(set(range(int(lengths.sum()))) - seen)
    group_ends = {int(lengths[: at + GROUP].sum()) for at in range(0, len(lengths), GROUP)}
    assert all(token + 1 in group_ends for token in missing)
    # No token is predicted twice.
    predicted = labels[learned].tolist()
    assert len(set(predicted)) == len(predicted)


@pytest.mark.parametrize("mode", ["stream", "until_overflow"])
@pytest.mark.parametrize("guides", [4, 1 << 16])
def test_isolated_documents_begin_and_end_where_the_index_says(
    dataset, lengths, mode, guides, monkeypatch
):
    monkeypatch.setattr(document_index, "_GUIDES", guides)
    begins = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    plain = GPTDataset(dataset, L, seed=1, shaping=Shaping(mode))
    isolated = GPTDataset(dataset, L, seed=1, shaping=Shaping(mode, isolate_documents=True))
    masked = GPTDataset(dataset, L, seed=1, shaping=Shaping(mode, mask_document_ends=True))
    for epoch in range(3):
        positions = epoch * plain.samples_per_epoch + np.arange(plain.samples_per_epoch)
        tokens, labels, row_start = isolated.read_samples(positions)
        before = plain.read_samples(positions)
        assert np.array_equal(tokens, before.tokens)
        used = before.labels != IGNORE
        for row in range(len(tokens)):
            for column in np.flatnonzero(used[row]):
                token = tokens[row, column]
                start = column - (token - begins[document_of[token]])
                assert row_start[row, column] == max(start, 0)
                last = document_of[token] != document_of[(token + 1) % total]
                assert (labels[row, column] == IGNORE) == (last or token + 1 == total)
            if not used[row].all():
                filling = used[row].argmin()
                assert (row_start[row, filling:] == filling).all()
        assert row_start.dtype == np.int32
        # The loss mask alone is the same, and lets attention pass.
        other = masked.read_samples(positions)
        assert np.array_equal(other.labels, labels)
        assert other.row_start is None


def test_boundaries_are_those_of_a_sorted_search(dataset, lengths, monkeypatch):
    monkeypatch.setattr(document_index, "_GUIDES", 4)
    index = DocumentIndex(dataset, range(10, 290))
    edges = np.concatenate([[0], np.cumsum(lengths[10:290])])
    tokens = np.arange(index.num_tokens + 1)
    expected = np.searchsorted(edges, tokens, side="right")
    assert np.array_equal(index.boundaries_up_to(tokens), expected)


def test_one_document_per_sample_needs_no_row_start(dataset):
    samples = GPTDataset(dataset, L, seed=0, shaping=Shaping("document", isolate_documents=True))
    assert samples.read_samples([0]).row_start is None
