"""The global order, reading ahead, and clean ends."""

import gc
import itertools
import threading

import pytest
import torch

from megatron_gptx.config.batch import Batch
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset
from megatron_gptx.data.loader import StepLoader

GLOBAL = 12


@pytest.fixture
def samples(make_dataset):
    return GPTDataset(make_dataset([range(500)]), 8, seed=4)


def make_loader(samples, *, replica=0, replicas=1, micro=2, prefetch=0, vocab_size=500):
    batch = Batch(GLOBAL, micro, GLOBAL // micro // replicas)
    return StepLoader(
        samples,
        batch,
        replica=replica,
        replicas=replicas,
        vocab_size=vocab_size,
        prefetch=prefetch,
    )


def take(loader, count, *, first_sample=0):
    return list(itertools.islice(loader.steps(first_sample), count))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_labels_are_the_tokens_that_follow(samples):
    (step,) = take(make_loader(samples), 1)
    for tokens, labels in step:
        assert tokens.shape == labels.shape == (2, 8)
        assert tokens.dtype == labels.dtype == torch.int64
        assert tokens.is_contiguous()
        assert labels.is_contiguous()
        assert torch.equal(tokens[:, 1:], labels[:, :-1])
    expected = torch.from_numpy(samples[0])
    assert torch.equal(step[0].tokens[0], expected[:-1])
    assert torch.equal(step[0].labels[0], expected[1:])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize(("replicas", "micro"), [(1, 1), (1, 4), (2, 2), (3, 2), (2, 1), (6, 2)])
def test_every_layout_shows_the_same_global_order(samples, replicas, micro, prefetch):
    shares = [
        take(make_loader(samples, replica=r, replicas=replicas, micro=micro, prefetch=prefetch), 8)
        for r in range(replicas)
    ]
    for step in range(8):
        rows = [
            share[step][m].tokens for m in range(GLOBAL // micro // replicas) for share in shares
        ]
        expected = samples.read_samples(step * GLOBAL, GLOBAL)[:, :-1]
        assert torch.equal(torch.cat(rows), torch.from_numpy(expected))


def test_a_later_start_continues_the_same_order(samples):
    loader = make_loader(samples, prefetch=2)
    for whole, rest in zip(
        take(loader, 7)[4:], take(loader, 3, first_sample=4 * GLOBAL), strict=True
    ):
        for one, other in zip(whole, rest, strict=True):
            assert torch.equal(one.tokens, other.tokens)


def test_reading_ahead_stays_within_its_depth(samples, monkeypatch):
    reads = []
    read = samples.read_samples
    monkeypatch.setattr(
        samples, "read_samples", lambda at, count: (reads.append(at), read(at, count))[1]
    )
    loader = make_loader(samples, micro=12, prefetch=3)
    steps = loader.steps(0)
    next(steps)
    reader = loader._running[0]
    with reader._changed:
        assert reader._changed.wait_for(lambda: len(reader._ready) == 3, timeout=10)
    assert reads == [0, 12, 24, 36]
    loader.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_id_outside_the_vocabulary_is_named_with_its_file(samples, prefetch):
    with pytest.raises(UserError, match=r"tokens: token id \d+ is outside .* vocabulary of 490; "):
        take(make_loader(samples, vocab_size=490, prefetch=prefetch), 60)
    assert not threads()


def test_an_error_in_the_thread_is_raised_by_the_step_that_needs_it(samples, monkeypatch):
    def fail(at, count):
        raise OSError("disk on fire")

    loader = make_loader(samples, prefetch=2)
    steps = loader.steps(0)
    next(steps)
    monkeypatch.setattr(samples, "read_samples", fail)
    with pytest.raises(OSError, match="disk on fire"):
        list(steps)
    assert not threads()


def test_no_thread_survives_close_or_a_dropped_iterator(samples):
    with make_loader(samples, prefetch=2) as loader:
        one, two = loader.steps(0), loader.steps(0)
        next(one), next(two)
        assert len(threads()) == 2
        del two
        gc.collect()
        assert len(threads()) == 1
    assert not threads()
    assert list(one) == []
