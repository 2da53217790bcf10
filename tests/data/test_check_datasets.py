"""Mistakes in the data found before a process starts."""

import json
import subprocess
import sys

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.check import check_datasets
from megatron_gptx.data.files import file_sha256
from megatron_gptx.data.manifest import manifest_path


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
    check_datasets(make_config(train=prefix, split="1,0,0", tokenizer=str(tokenizer_file)))
    check_datasets(make_config(train=prefix, valid=prefix))


def test_everything_wrong_is_said_at_once(make_dataset, tmp_path):
    prefix = make_dataset([range(20)]).prefix
    config = make_config(
        vocab_size=10,
        seq_length=100,
        train=str(prefix),
        valid=str(tmp_path / "absent"),
        tokenizer=str(tmp_path / "absent.json"),
    )
    with pytest.raises(UserError) as caught:
        check_datasets(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "20 tokens, but one sample takes seq_length + 1 = 101" in lines[0]
    assert "absent.json: no such tokenizer file" in lines[1]
    assert (
        "token id 19 is outside the vocabulary of 10: raise model.vocab_size above it" in lines[2]
    )
    assert "absent.idx: no such file" in lines[3]


def test_a_missing_dataset_is_said_once(tmp_path):
    with pytest.raises(UserError) as caught:
        check_datasets(make_config(train=str(tmp_path / "absent")))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"data\.train is not set"):
        check_datasets(make_config())


def test_the_manifest_knows_ids_that_sampling_would_miss(make_dataset, monkeypatch):
    monkeypatch.setattr("megatron_gptx.data.verify._BLOCK_TOKENS", 2)
    tokens = np.ones(10_000)
    tokens[5001] = 400
    dataset = make_dataset([tokens])
    config = make_config(train=str(dataset.prefix))
    check_datasets(config)  # 64 blocks of 2 tokens do not meet it
    add_manifest(dataset, max_id=400)
    with pytest.raises(UserError, match="token id 400 is outside"):
        check_datasets(config)


def test_a_manifest_of_other_files_is_not_believed(make_dataset):
    dataset = make_dataset([[1] * 50])
    add_manifest(dataset, max_id=400, num_tokens=51)
    check_datasets(make_config(train=str(dataset.prefix)))


def test_negative_ids_are_found(make_dataset):
    dataset = make_dataset([[1] * 50, [-7]], dtype=np.int32)
    with pytest.raises(UserError, match="token id -7 is negative"):
        check_datasets(make_config(train=str(dataset.prefix)))


def test_a_tokenizer_that_does_not_fit_the_model_or_the_dataset_is_found(
    make_dataset, tokenizer_file
):
    dataset = make_dataset([[1] * 50])
    add_manifest(dataset, max_id=1, sha256="ab" * 32)
    config = make_config(train=str(dataset.prefix), tokenizer=str(tokenizer_file), vocab_size=100)
    with pytest.raises(UserError) as caught:
        check_datasets(config)
    first, second = str(caught.value).splitlines()
    assert "its vocabulary of 269 does not fit into model.vocab_size 100" in first
    assert "made with another tokenizer (sha256 abababababab)" in second


def test_checking_needs_no_torch():
    code = "import sys, megatron_gptx.data.check as c; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
