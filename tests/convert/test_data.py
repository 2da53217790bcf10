"""Datasets keep their weights, their labels and their split."""

import pytest

from megatron_gptx.config.errors import ConfigError
from tests.convert.settings import fates, refused, translated


@pytest.mark.parametrize("granularity", ["selective", None])
def test_recomputing_parts_of_a_layer_has_no_option(granularity):
    settings = {"recompute_granularity": granularity} if granularity else {}
    translation = translated("megatron", {**settings, "recompute_activations": True})
    assert "training.checkpoint_activations" not in translation.options
    assert refused(translation) == set()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", "a"),
        (["a", "b"], {"a": 1.0, "b": 1.0}),
        ([3, "a", 1, "b"], {"a": 3, "b": 1}),
        ([0.3, "a", 0.2, "b", 0.5, "a"], {"a": 0.8, "b": 0.2}),
        ([1, "a"], "a"),
    ],
)
def test_a_data_path_is_a_prefix_prefixes_or_weights_and_prefixes(path, expected):
    options = translated("megatron", {"data_path": path}).options
    assert options["data.train"] == expected
    assert options["data.split"] == "969,30,1"


@pytest.mark.parametrize("path", [[0.3, "a", "b"], [0.3, "a", 0.7], [0.3, "a", "b", 0.7]])
def test_a_weight_without_a_prefix_is_an_error(path):
    with pytest.raises(ConfigError, match=r"theirs:1: data_path: expected a weight and a prefix"):
        translated("megatron", {"data_path": path})


def test_an_unknown_data_path_takes_the_split_with_it_into_no_list_of_its_own():
    translation = translated("megatron", {"data_path": "$5", "split": "90,5,5"})
    assert fates(translation) == {"data_path": "refused", "split": "translated"}
    assert translation.options["data.split"] == "90,5,5"


def test_an_unknown_prefix_in_a_blend_is_named():
    translation = translated("megatron", {"data_path": [0.5, "$A", 0.5, "b"]})
    assert refused(translation) == {"data_path"}


def test_validation_data_of_their_own_need_no_split():
    settings = {"train_data_path": [1, "a", 1, "b"], "valid_data_path": "v", "split": "9,1,0"}
    translation = translated("megatron", {**settings, "test_data_path": "t"})
    assert translation.options["data.train"] == {"a": 1, "b": 1}
    assert translation.options["data.valid"] == "v"
    assert "data.split" not in translation.options
    assert fates(translation)["split"] == "not needed"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train_data_weights": [1, 2]}, "train_data_weights has 2 entries, but train_data_paths"),
        ({"train_label_data_paths": ["x"]}, "train_label_data_paths has 1 entries"),
    ],
)
def test_lists_of_unequal_lengths_are_an_error(lists, message):
    with pytest.raises(ConfigError, match=message) as found:
        translated("neox", {"train_data_paths": ["a", "b", "c"], **lists})
    assert "theirs:2" in str(found.value)
    assert "theirs:1 has 3" in str(found.value)


def test_weights_of_one_dataset_add_up():
    paths = {"train_data_paths": ["a", "b", "a"], "train_data_weights": [0.3, 0.2, 0.5]}
    assert translated("neox", paths).options["data.train"] == {"a": 0.8, "b": 0.2}


def test_a_data_path_beside_training_data_is_named():
    translation = translated("neox", {"data_path": "a", "train_data_paths": ["b"]})
    assert translation.options["data.train"] == "b"
    assert refused(translation) == {"data_path"}
