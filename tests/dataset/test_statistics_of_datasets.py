"""Entropy and lengths, against values known by hand."""

import math

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset
from megatron_gptx.dataset.statistics import length_histogram, token_counts, unigram_entropy


def test_entropy_of_equal_frequencies_is_the_logarithm_of_their_number(make_dataset):
    dataset = make_dataset([[0, 1, 2, 3], [7, 8, 9, 100]])
    assert unigram_entropy(dataset) == pytest.approx(math.log(8), abs=1e-12)
    assert unigram_entropy(make_dataset([[5] * 9])) == pytest.approx(0, abs=1e-12)


def test_entropy_of_a_coin_that_is_not_fair(make_dataset):
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert unigram_entropy(make_dataset([[1, 0, 0, 0]])) == pytest.approx(expected, abs=1e-12)


def test_chunks_add_up(make_dataset, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 50, 1000)
    dataset = make_dataset([ids, [60]])
    whole = token_counts(dataset)
    monkeypatch.setattr("megatron_gptx.dataset.statistics._CHUNK", 7)
    assert np.array_equal(token_counts(dataset), whole)
    assert np.array_equal(whole, np.bincount([*ids, 60]))


def test_a_part_of_a_dataset_has_its_own_entropy(make_dataset):
    dataset = make_dataset([[1, 2] * 8, [3] * 8])
    part = GPTDataset(dataset, 2, seed=0, last_document=1)
    assert unigram_entropy(part) == pytest.approx(math.log(2), abs=1e-12)


def test_an_empty_dataset_has_none(make_dataset):
    assert unigram_entropy(make_dataset([])) == 0
    assert length_histogram(make_dataset([])) == []


def test_negative_ids_are_refused(make_dataset):
    with pytest.raises(UserError, match="tokens: token id -3 is negative"):
        unigram_entropy(make_dataset([[1, -3]], dtype=np.int32))


def test_lengths_are_counted_by_powers_of_two(make_dataset, monkeypatch):
    dataset = make_dataset([[0] * n for n in (0, 1, 1, 2, 3, 4, 5, 8, 9)])
    expected = [(0, 1), (1, 2), (2, 1), (4, 2), (8, 2), (16, 1)]
    assert length_histogram(dataset) == expected
    monkeypatch.setattr("megatron_gptx.dataset.statistics._CHUNK", 2)
    assert length_histogram(dataset) == expected
