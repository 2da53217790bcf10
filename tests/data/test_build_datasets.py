"""Separate and split training and validation data."""

import re

import numpy as np
import pytest
import tokenizers

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.build import (
    build_datasets,
    build_validation,
    decide_steps,
    split_documents,
)


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
    assert ids_of(datasets.valid[""], 7) == {2}


def test_without_valid_and_split_there_is_no_validation(make_dataset):
    config = DataConfig(train=str(make_dataset([[1] * 50]).prefix))
    assert build_datasets(config, seq_length=4, seed=1).valid == {}


def test_a_split_divides_documents(make_dataset):
    prefix = str(make_dataset([[i] * 20 for i in range(20)]).prefix)
    train, valid = build_datasets(DataConfig(train=prefix, split="8,1,1"), seq_length=4, seed=1)
    assert ids_of(train, 500) == set(range(16))
    assert ids_of(valid[""], 500) == {16, 17}


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
    assert build("1,0,0").valid == {}
    with pytest.raises(UserError, match="documents 10 to 10 have 0 tokens"):
        build("969,30,1")


def test_validation_samples_do_not_change_with_the_training_seed(make_dataset):
    prefix = str(make_dataset([range(1000)]).prefix)
    config = DataConfig(train=prefix, valid=prefix)
    one, two = (build_datasets(config, seq_length=4, seed=seed) for seed in (1, 2))
    assert np.array_equal(
        one.valid[""].read_samples(range(9)).tokens, two.valid[""].read_samples(range(9)).tokens
    )
    assert not np.array_equal(
        one.train.read_samples(range(9)).tokens, two.train.read_samples(range(9)).tokens
    )


def test_no_training_dataset_is_an_error():
    with pytest.raises(UserError, match=r"data\.train: is not set"):
        build_datasets(DataConfig(), seq_length=4, seed=1)


def test_a_blend_is_split_dataset_by_dataset(make_dataset):
    prefixes = [
        str(make_dataset([[i + j] * 20 for i in range(10)], name=f"d{j}").prefix) for j in (0, 100)
    ]
    config = DataConfig(train={prefixes[0]: 3, prefixes[1]: 1.0}, split="8,2,0")
    train, valid = build_datasets(config, seq_length=4, seed=1)
    assert ids_of(train, 1000) == {*range(8), *range(100, 108)}
    assert ids_of(valid[""], 1000) == {8, 9, 108, 109}
    assert [share.samples for share in train.shares(1000)] == [750, 250]


def test_validation_data_may_be_a_blend_of_its_own(make_dataset):
    train, a, b = (str(make_dataset([[i] * 50], name=f"d{i}").prefix) for i in range(3))
    datasets = build_datasets(DataConfig(train=train, valid={a: 1, b: 2}), seq_length=4, seed=1)
    assert ids_of(datasets.train, 20) == {0}
    assert ids_of(datasets.valid[""], 20) == {1, 2}


def test_each_named_validation_set_is_data_of_its_own(make_dataset):
    train, a, b, c = (str(make_dataset([[i] * 50], name=f"d{i}").prefix) for i in range(4))
    config = DataConfig(train=train, valid={"code": a, "prose": {b: 1, c: 2.5}})
    assert config.valid_weights == {a: 1, b: 1, c: 2.5}
    sets = build_datasets(config, seq_length=4, seed=1).valid
    assert {name: ids_of(one, 20) for name, one in sets.items()} == {"code": {1}, "prose": {2, 3}}


def test_validation_needs_no_training_data(make_dataset, tmp_path):
    valid = str(make_dataset([[2] * 50]).prefix)
    for train in (None, str(tmp_path / "gone")):
        sets = build_validation(DataConfig(train=train, valid=valid), seq_length=4)
        assert ids_of(sets[""], 20) == {2}
    with pytest.raises(UserError, match=r"data\.train: is not set"):
        build_validation(DataConfig(split="8,1,1"), seq_length=4)


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        ({"a": 1, "b": "data/b"}, "either all values are weights, or all are datasets, but a is 1"),
        ({"a b": "data/b"}, "a name should be of letters, digits and _ . - only, got 'a b'"),
        ({"a": {"data/b": -1}}, "the weight of data/b should be a number above 0, got -1"),
        ({"a": {}}, "a blend needs at least one dataset"),
        ({}, "a blend needs at least one dataset"),
    ],
)
def test_validation_sets_that_cannot_be_are_refused(valid, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(train="data/a", valid=valid)


def test_labels_belong_to_their_dataset(make_dataset):
    a, b, labels = (
        str(make_dataset([[i] * 50], name=f"d{i}", dtype=np.int32).prefix) for i in (1, 2, 3)
    )
    config = DataConfig(train={a: 1, b: 1}, labels={b: labels})
    tokens, found, _ = build_datasets(config, seq_length=4, seed=1).train.read_samples(range(20))
    learned = found != IGNORE
    assert set(found[learned & (tokens == 1)].tolist()) == {1}
    assert set(found[learned & (tokens == 2)].tolist()) == {3}


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_options_reach_the_training_and_the_validation_samples(make_dataset, packing):
    prefix = str(make_dataset([[i] * 5 for i in range(36)]).prefix)
    options = {"packing": packing, "isolate_documents": True}
    datasets = build_datasets(
        DataConfig(train=prefix, split="1,1,0", **options), seq_length=14, seed=1
    )
    for part in (datasets.train, datasets.valid[""]):
        _, labels, row_start = part.read_samples([0])
        inputs = (labels != IGNORE).sum()
        assert inputs == {"stream": 11, "until_overflow": 12, "document": 4}[packing] or (
            packing == "stream" and inputs == 12
        )
        assert (row_start is None) == (packing == "document")


@pytest.fixture
def infill_tokenizer(tmp_path, tokenizer_file):
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    tokenizer.add_special_tokens(names)
    path = tmp_path / "infill.json"
    tokenizer.save(str(path))
    return str(path), {name: tokenizer.token_to_id(name) for name in names}


def test_the_middle_is_filled_in_by_the_tokenizer_s_ids_in_training_only(
    make_dataset, infill_tokenizer
):
    path, ids = infill_tokenizer
    prefix = str(make_dataset([range(30)] * 20).prefix)
    config = DataConfig(
        train=prefix, split="1,1,0", tokenizer=path, fill_in_the_middle={"rate": 1.0}
    )
    train, valid = build_datasets(config, seq_length=29, seed=1)
    assert set(ids.values()) <= ids_of(train, 20)
    assert not set(ids.values()) & ids_of(valid[""], 20)


def test_a_tokenizer_without_the_tokens_is_named(make_dataset, tokenizer_file):
    config = DataConfig(
        train=str(make_dataset([range(30)]).prefix),
        tokenizer=str(tokenizer_file),
        fill_in_the_middle={"rate": 0.5},
    )
    with pytest.raises(UserError, match=r"tokenizer\.json has no token '<\|fim_prefix\|>'"):
        build_datasets(config, seq_length=8, seed=1)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 9), (0.01, 1)])
def test_epochs_become_steps(make_dataset, epochs, steps):
    prefix = str(make_dataset([range(100)]).prefix)  # 13 samples of 8
    config = make_config(prefix, training={"epochs": epochs, "global_batch_size": 4})
    decided = decide_steps(config)
    assert decided.training.steps == steps
    assert decided.training.epochs is None
    assert decide_steps(decided) is decided


def test_warm_up_must_leave_steps_of_the_epochs(make_dataset):
    prefix = str(make_dataset([range(100)]).prefix)
    config = make_config(
        prefix,
        training={"epochs": 1, "global_batch_size": 4},
        schedule={"warmup_steps": 4},
    )
    with pytest.raises(UserError, match="warmup_steps 4 leaves none of the 4 steps"):
        decide_steps(config)


def make_config(prefix, **sections):
    return Config.model_validate(
        {
            "model": {
                "num_layers": 1,
                "hidden_size": 8,
                "num_heads": 1,
                "vocab_size": 100,
                "seq_length": 8,
            },
            "optimizer": {"lr": 0.1},
            "data": {"train": prefix},
            **sections,
        }
    )
