"""A written configuration loads back to an equal one."""

from pathlib import Path

import pytest

from megatron_gptx.config.load import load
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump

SMALL = {
    "model": {
        "num_layers": 2,
        "hidden_size": 8,
        "num_heads": 2,
        "vocab_size": 9,
        "seq_length": 4,
    },
    "training": {"steps": 3, "micro_batch_size": 1},
    "optimizer": {"lr": 3e-4},
}


def reload(config: Config, folder: Path) -> Config:
    path = folder / "written.yml"
    path.write_text(dump(config), encoding="utf-8")
    return load([path])


@pytest.mark.parametrize(
    "text",
    [
        "off",
        "1e3",
        "3",
        "null",
        "",
        "~",
        "0x10",
        "true",
        " x ",
        "a: b",
        "#",
        "ü z",
        "'",
        "[",
        "!x",
    ],
)
def test_text_that_looks_like_something_else_stays_text(tmp_path, text):
    config = Config.model_validate({**SMALL, "output": {"run_dir": text}})
    assert reload(config, tmp_path) == config


@pytest.mark.parametrize("number", [1e-8, 1e16, 1.5e300, 5e-324, 0.1, 1e8, 2.0, 12345678.9])
def test_a_float_comes_back_bit_by_bit(tmp_path, number):
    config = Config.model_validate(
        {**SMALL, "optimizer": {"lr": 1, "weight_decay": number}, "deepspeed": {"x": number}}
    )
    again = reload(config, tmp_path)
    assert again == config
    assert isinstance(again.deepspeed["x"], float)


def test_the_deepspeed_section_comes_back_as_it_is(tmp_path):
    raw = {"a": [1, [2.5, {"b": None}]], "off": "no", "1": {}, "c": [], "d": True}
    config = Config.model_validate({**SMALL, "deepspeed": raw})
    assert reload(config, tmp_path) == config


def test_every_option_is_written(tmp_path):
    text = dump(Config.model_validate(SMALL))
    for name in ("ffn_hidden_size: null", "betas: [0.9, 0.95]", "eps: 1e-08", "deepspeed: {}"):
        assert name in text
