"""Mistakes in the data found before a process starts."""

import json
import subprocess
import sys

import numpy as np
import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.data.preflight import dataset_problems
from megatron_gptx.dataset.manifest import manifest_path
from megatron_gptx.files.checksums import file_sha256


def make_config(*, vocab_size=300, seq_length=8, **data):
    return Config.model_validate(
        {
            "model": {
                "num_layers": 1,
                "hidden_size": 8,
                "num_heads": 1,
                "vocab_size": vocab_size,
                "seq_length": seq_length,
            },
            "training": {"steps": 1, "micro_batch_size": 1},
            "optimizer": {"lr": 0.1},
            "data": data,
        }
    )


def problems(config):
    """Return what is wrong, as lines `OPTION: MESSAGE`."""
    found = dataset_problems(config)
    return [f"{key if isinstance(key, str) else '.'.join(key)}: {text}" for key, text in found]


def add_manifest(dataset, *, max_id, sha256="0" * 64, num_tokens=None):
    path = manifest_path(dataset.prefix)
    path.parent.mkdir()
    content = {
        "num_tokens": dataset.num_tokens if num_tokens is None else num_tokens,
        "max_id": max_id,
        "tokenizer": {"sha256": sha256},
    }
    path.write_text(json.dumps(content))


def test_good_data_passes(make_dataset, tokenizer_file):
    dataset = make_dataset([range(300)])
    add_manifest(dataset, max_id=299, sha256=file_sha256(tokenizer_file))
    prefix = str(dataset.prefix)
    assert problems(make_config(train=prefix, split="1,0,0", tokenizer=str(tokenizer_file))) == []
    assert problems(make_config(train=prefix, valid=prefix)) == []


def test_everything_wrong_is_said_at_once(make_dataset, tmp_path):
    prefix = make_dataset([range(20)]).prefix
    config = make_config(
        vocab_size=10,
        seq_length=100,
        train=str(prefix),
        valid=str(tmp_path / "absent"),
        tokenizer=str(tmp_path / "absent.json"),
    )
    lines = problems(config)
    assert len(lines) == 3
    assert lines[0].startswith(f"data.valid: {tmp_path}/absent.idx: no such file")
    assert lines[1].startswith(f"data.tokenizer: {tmp_path}/absent.json: no such tokenizer file")
    assert (
        "token id 19 is outside the vocabulary of 10: raise model.vocab_size above it" in lines[2]
    )


@pytest.mark.parametrize(
    ("part", "options"),
    [("train", {}), ("valid", {"train": "large"}), ("split", {"split": "1,99,0"})],
)
def test_a_part_that_is_too_small_for_one_sample_is_named(make_dataset, part, options):
    large, small = (str(make_dataset([range(n)] * 5, name=f"{n}").prefix) for n in (200, 20))
    data = {"train": small, **options} if part != "valid" else {"train": large, "valid": small}
    (line,) = problems(make_config(seq_length=100 if part != "split" else 150, **data))
    assert line.startswith(f"data.{part}: ")
    assert "but one sample takes seq_length + 1" in line


def test_each_of_several_datasets_is_named_with_its_prefix(make_dataset, tmp_path):
    prefix = str(make_dataset([range(20)]).prefix)
    blend = {str(tmp_path / "one"): 1, prefix: 1, str(tmp_path / "two"): 1}
    labels = {prefix: str(tmp_path / "three")}
    lines = problems(make_config(vocab_size=10, train=blend, labels=labels))
    assert [line.partition(": ")[0] for line in lines] == [
        f"data.train.{tmp_path}/one",
        f"data.train.{tmp_path}/two",
        f"data.labels.{prefix}",
        f"data.train.{prefix}",
    ]


def test_a_name_that_is_nearly_a_dataset_s_is_mended(make_dataset, monkeypatch):
    dataset = make_dataset([range(20)])
    monkeypatch.chdir(dataset.prefix.parent)
    name = dataset.prefix.name
    wrong = name[:-1] + name[-1] * 2
    (line,) = problems(make_config(train=wrong))
    assert line.endswith(f"no such file in {dataset.prefix.parent}; did you mean {name!r}?")


def test_a_missing_dataset_is_said_once(tmp_path):
    assert len(problems(make_config(train=str(tmp_path / "absent")))) == 1
    (line,) = problems(make_config())
    assert line.startswith("data.train: is not set")


def test_the_manifest_knows_ids_that_sampling_would_miss(make_dataset, monkeypatch):
    monkeypatch.setattr("megatron_gptx.dataset.verify._BLOCK_TOKENS", 2)
    tokens = np.ones(10_000)
    tokens[5001] = 400
    dataset = make_dataset([tokens])
    config = make_config(train=str(dataset.prefix))
    assert problems(config) == []  # 64 blocks of 2 tokens do not meet it
    add_manifest(dataset, max_id=400)
    (line,) = problems(config)
    assert "token id 400 is outside" in line


def test_a_manifest_of_other_files_is_not_believed(make_dataset):
    dataset = make_dataset([[1] * 50])
    add_manifest(dataset, max_id=400, num_tokens=51)
    assert problems(make_config(train=str(dataset.prefix))) == []


def test_negative_ids_are_found(make_dataset):
    dataset = make_dataset([[1] * 50, [-7]], dtype=np.int32)
    (line,) = problems(make_config(train=str(dataset.prefix)))
    assert "token id -7 is negative" in line


def test_a_tokenizer_that_does_not_fit_the_model_or_the_dataset_is_found(
    make_dataset, tokenizer_file
):
    dataset = make_dataset([[1] * 50])
    add_manifest(dataset, max_id=1, sha256="ab" * 32)
    config = make_config(train=str(dataset.prefix), tokenizer=str(tokenizer_file), vocab_size=100)
    first, second = problems(config)
    assert first.startswith("model.vocab_size: 100 is too small for the 269 ids of data.tokenizer")
    assert "made with another tokenizer (sha256 abababababab)" in second


def test_checking_needs_no_torch():
    code = "import sys, megatron_gptx.data.preflight as c; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
