"""Separate and split training and validation data."""

import numpy as np
import pytest

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.build import build_datasets, split_documents


def ids_of(dataset, count):
    """Return which ids the first samples hold."""
    tokens, labels, _ = dataset.read_samples(range(count))
    return set(tokens[labels != IGNORE].tolist())


def test_separate_datasets_are_opened(make_dataset):
    train = make_dataset([[1] * 50], name="train")
    valid = make_dataset([[2] * 30], name="valid")
    config = DataConfig(train=str(train.prefix), valid=str(valid.prefix))
    datasets = build_datasets(config, seq_length=4, seed=1)
    assert ids_of(datasets.train, 20) == {1}
    assert ids_of(datasets.valid, 7) == {2}


def test_without_valid_and_split_there_is_no_validation(make_dataset):
    config = DataConfig(train=str(make_dataset([[1] * 50]).prefix))
    assert build_datasets(config, seq_length=4, seed=1).valid is None


def test_a_split_divides_documents(make_dataset):
    prefix = str(make_dataset([[i] * 20 for i in range(20)]).prefix)
    train, valid = build_datasets(DataConfig(train=prefix, split="8,1,1"), seq_length=4, seed=1)
    assert ids_of(train, 500) == set(range(16))
    assert ids_of(valid, 500) == {16, 17}


def test_shares_round_to_whole_documents_that_leave_none_out():
    assert split_documents("969,30,1", 1000) == [969, 999, 1000]
    assert split_documents("969,30,1", 10) == [10, 10, 10]
    assert split_documents("0.5,0.25,0.25", 8) == [4, 6, 8]
    assert split_documents("1,1,1", 10) == [3, 7, 10]


def test_a_share_of_nothing_is_no_validation_but_a_share_without_tokens_is_an_error(make_dataset):
    prefix = str(make_dataset([[i] * 20 for i in range(10)]).prefix)
    build = lambda split: build_datasets(  # noqa: E731
        DataConfig(train=prefix, split=split), seq_length=4, seed=1
    )
    assert build("1,0,0").valid is None
    with pytest.raises(UserError, match="documents 10 to 10 have 0 tokens"):
        build("969,30,1")


def test_validation_samples_do_not_change_with_the_training_seed(make_dataset):
    prefix = str(make_dataset([range(1000)]).prefix)
    config = DataConfig(train=prefix, valid=prefix)
    one, two = (build_datasets(config, seq_length=4, seed=seed) for seed in (1, 2))
    assert np.array_equal(
        one.valid.read_samples(range(9)).tokens, two.valid.read_samples(range(9)).tokens
    )
    assert not np.array_equal(
        one.train.read_samples(range(9)).tokens, two.train.read_samples(range(9)).tokens
    )


def test_no_training_dataset_is_an_error():
    with pytest.raises(UserError, match=r"data\.train is not set"):
        build_datasets(DataConfig(), seq_length=4, seed=1)
