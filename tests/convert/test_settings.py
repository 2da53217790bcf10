"""GPT-NeoX's files are read as GPT-NeoX reads them."""

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.convert.settings import read_neox


def test_later_files_override_earlier_ones(tmp_path):
    for name, text in (("a.yml", "num-layers: 2\nlr: 1"), ("b.yml", "num_layers: 3")):
        (tmp_path / name).write_text(text)
    settings = read_neox([tmp_path / "a.yml", tmp_path / "b.yml"])
    assert (settings["num_layers"].value, settings["lr"].value) == (3, 1)
    assert settings["num_layers"].place.source.endswith("b.yml")


def test_values_are_read_as_yaml_1_1_reads_them(tmp_path):
    text = "a: yes\nb: off\nc: 220_000_000\nd: 1.0e_8\ne: [1_0, On]\nf: 1e-4\na-b: 1\na_b: 2\n"
    (tmp_path / "a.yml").write_text(text)
    values = {name: found.value for name, found in read_neox([tmp_path / "a.yml"]).items()}
    assert values == {
        "a": True,
        "b": False,
        "c": 220_000_000,
        "d": "1.0e_8",
        "e": [10, True],
        "f": 1e-4,
        "a_b": 2,
    }


def test_a_file_that_is_no_yaml_is_one_message_with_its_line(tmp_path):
    (tmp_path / "a.yml").write_text('{\n  "load": "x"\n  "finetune": true,\n}\n')
    with pytest.raises(ConfigError, match=r"line 3: not valid YAML"):
        read_neox([tmp_path / "a.yml"])
