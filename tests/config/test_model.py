"""What makes two sections the same model."""

import pytest

from megatron_gptx.config.model import ModelConfig


def model(**options: object) -> ModelConfig:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 9, "seq_length": 8}
    return ModelConfig.model_validate({**sizes, **options})


@pytest.mark.parametrize(("macaron", "width"), [(False, 128), (True, 64)])
def test_a_default_written_out_makes_no_other_model(macaron, width):
    one, other = model(macaron=macaron), model(macaron=macaron, ffn_hidden_size=width)
    assert one != other
    assert one.resolved == other.resolved
    assert one.differences(other) == other.differences(one) == {}


def test_each_difference_is_named_with_the_other_value_and_the_own_one():
    other = model(macaron=True, attention={"top_k": 4})
    assert model().differences(other) == {
        "macaron": (True, False),
        "attention.top_k": (4, None),
    }
    assert model(ffn_hidden_size=5).differences(model()) == {"ffn_hidden_size": (128, 5)}


def test_what_no_weight_depends_on_is_free():
    assert model(dropout=0.1, init_std=0.3, attention={"dropout": 0.1}).differences(model()) == {}
