"""Text stays text, whatever the file of the tokenizer says."""

import json

import pytest
from tokenizers import Tokenizer

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.train import train_byte_level_bpe


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["the cat sat on the mat"] * 9, vocab_size=266))
    return path


@pytest.mark.parametrize(
    "text", ["", "the cat", " \n\t tabs", "é 漢字 \U0001f600", "a\x00b", "<|endoftext|>", "\ufffd"]
)
def test_every_text_comes_back(path, text):
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    batch = tokenizer.encode_batch([text, "x"])
    assert batch.ids.tolist() == ids + tokenizer.encode("x")
    assert batch.lengths.tolist() == [len(ids), 1]
    assert all(id < tokenizer.vocab_size for id in ids)


def test_a_special_token_spelled_out_stays_text(path):
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.end_of_document not in ids
    assert len(ids) > 5
    assert tokenizer.decode([tokenizer.end_of_document]) == "<|endoftext|>"


def test_an_end_of_document_that_is_not_marked_special_stays_text_as_well(path):
    content = json.loads(path.read_text())
    content["added_tokens"][0]["special"] = False
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(path)
    assert tokenizer.end_of_document == 0
    assert 0 not in tokenizer.encode("a<|endoftext|>b")


def test_truncation_and_padding_in_the_file_do_not_touch_a_corpus(path):
    raw = Tokenizer.from_file(str(path))
    raw.enable_truncation(4)
    raw.enable_padding(length=50)
    raw.save(str(path))
    tokenizer = load_tokenizer(path)
    assert len(tokenizer.encode("z" * 30)) == 30
    assert tokenizer.encode_batch(["z" * 30, "z"]).lengths.tolist() == [30, 1]


def test_the_vocabulary_size_is_the_largest_id_and_one(path):
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 1000, "content": "<x>"})
    content["model"]["vocab"]["<x>"] = 1000
    path.write_text(json.dumps(content))
    assert load_tokenizer(path).vocab_size == 1001


def test_the_end_of_a_document_can_be_named(path):
    assert load_tokenizer(path, end_of_document_name="a").end_of_document > 0
    with pytest.raises(UserError, match=r"no token '<nope>'; known names are <\|endoftext\|>"):
        _ = load_tokenizer(path, end_of_document_name="<nope>").end_of_document


def test_files_that_are_no_tokenizers_are_named(path, tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: no such tokenizer file"):
        load_tokenizer(tmp_path / "absent.json")
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_tokenizer(path)
