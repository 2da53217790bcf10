"""The global order, reading ahead, and clean ends."""

import gc
import itertools
import threading

import numpy as np
import pytest
import torch

import megatron_gptx.data.loader as loader_module
from megatron_gptx.config.batch import Batch
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping
from megatron_gptx.data.loader import StepLoader
from tests.pairs import extended

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
    for tokens, labels, row_start in step:
        assert row_start is None
        assert tokens.shape == labels.shape == (2, 8)
        assert tokens.dtype == labels.dtype == torch.int64
        assert tokens.is_contiguous()
        assert labels.is_contiguous()
        assert torch.equal(tokens[:, 1:], labels[:, :-1])
    expected = samples.read_samples([0])
    assert torch.equal(step[0].tokens[:1], torch.from_numpy(expected.tokens))
    assert torch.equal(step[0].labels[:1], torch.from_numpy(expected.labels))


# Each layout once, read ahead in turn by no steps, one, and three.
@pytest.mark.parametrize(
    ("replicas", "micro", "prefetch"),
    [
        (*layout, prefetch) if i % 3 == j else extended(*layout, prefetch)
        for i, layout in enumerate([(1, 1), (1, 4), (2, 2), (3, 2), (2, 1), (4, 1), (4, 3)])
        for j, prefetch in enumerate([0, 1, 3])
    ],
)
def test_every_layout_shows_the_same_global_order(samples, replicas, micro, prefetch):
    shares = [
        take(make_loader(samples, replica=r, replicas=replicas, micro=micro, prefetch=prefetch), 8)
        for r in range(replicas)
    ]
    for step in range(8):
        rows = [
            share[step][m].tokens for m in range(GLOBAL // micro // replicas) for share in shares
        ]
        expected = samples.read_samples(step * GLOBAL + np.arange(GLOBAL)).tokens
        assert torch.equal(torch.cat(rows), torch.from_numpy(expected))


def test_a_later_start_continues_the_same_order(samples):
    loader = make_loader(samples, prefetch=2)
    for whole, rest in zip(
        take(loader, 7)[4:], take(loader, 3, first_sample=4 * GLOBAL), strict=True
    ):
        for one, other in zip(whole, rest, strict=True):
            assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_run_goes_on_with_another_number_of_replicas_where_it_stopped(samples, replicas):
    def rows(loaders, count, first_sample):
        steps = [take(loader, count, first_sample=first_sample) for loader in loaders]
        return [
            row
            for step in range(count)
            for m in range(len(steps[0][step]))
            for share in steps
            for row in share[step][m].tokens
        ]

    batch = [make_loader(samples, replica=r, replicas=replicas, micro=3) for r in range(replicas)]
    together = rows([make_loader(samples, micro=3)], 6, 0)
    resumed = rows([make_loader(samples, micro=3)], 2, 0) + rows(batch, 4, 2 * GLOBAL)
    assert torch.equal(torch.stack(resumed), torch.stack(together))


def test_micro_batches_carry_where_documents_begin(make_dataset):
    dataset = make_dataset([range(i, i + 5) for i in range(0, 500, 5)])
    samples = GPTDataset(dataset, 8, seed=4, shaping=Shaping(isolate_documents=True))
    (step,) = take(make_loader(samples, micro=4), 1)
    for micro_batch, at in zip(step, (0, 4, 8), strict=True):
        expected = samples.read_samples(at + np.arange(4))
        for part, rows in zip(micro_batch, expected, strict=True):
            assert torch.equal(part, torch.from_numpy(rows))
    assert micro_batch.row_start.dtype == torch.int32


@pytest.mark.parametrize(("together", "groups"), [(1, [1, 1, 1, 1]), (3, [1, 2, 3, 3])])
def test_reading_ahead_stays_within_its_depth(samples, monkeypatch, together, groups):
    reads = []
    read = samples.read_samples
    monkeypatch.setattr(
        samples, "read_samples", lambda at: (reads.append(at.tolist()), read(at))[1]
    )
    monkeypatch.setattr(loader_module, "_TOKENS_TOGETHER", together * GLOBAL * 8 + 1)
    loader = make_loader(samples, micro=12, prefetch=3)
    steps = loader.steps(0)
    next(steps)
    reader = loader._running[0]
    with reader._changed:
        assert reader._changed.wait_for(lambda: len(reader._ready) == 3, timeout=10)
    assert [len(positions) for positions in reads] == [steps * GLOBAL for steps in groups]
    assert list(itertools.chain.from_iterable(reads)) == list(range(sum(groups) * GLOBAL))
    loader.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_steps_before_a_bad_one_are_given_though_they_are_read_together(samples, prefetch):
    ids = samples.read_samples(np.arange(20 * GLOBAL)).labels.reshape(20, -1)
    (bad,) = np.flatnonzero(ids.max(axis=1) == 499)[:1]
    assert bad > 0, "the test needs another seed"
    steps = make_loader(samples, vocab_size=499, prefetch=prefetch).steps(0)
    given = list(itertools.islice(steps, int(bad)))
    assert len(given) == bad
    with pytest.raises(UserError, match="token id 499 is outside"):
        next(steps)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_id_outside_the_vocabulary_is_named_with_its_file(samples, prefetch):
    with pytest.raises(UserError, match=r"tokens: token id \d+ is outside .* vocabulary of 490; "):
        take(make_loader(samples, vocab_size=490, prefetch=prefetch), 60)
    assert not threads()


def test_an_error_in_the_thread_is_raised_by_the_step_that_needs_it(samples, monkeypatch):
    def fail(at):
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
