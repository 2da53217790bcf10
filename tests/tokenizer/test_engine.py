"""gigatoken is taken where its ids are equal, and nowhere else."""

import json
import random
import sys

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer import engine as engine_module
from megatron_gptx.tokenizer.base import Batch
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.engine import (
    EngineMismatchError,
    choose_engine,
    compare,
    gigatoken_encoder,
    probe_strings,
)
from megatron_gptx.tokenizer.train import train_byte_level_bpe

pytest.importorskip("gigatoken", reason="gigatoken is an extra")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["the cat sat on the mat 123"] * 9, vocab_size=280))
    return path


@pytest.mark.parametrize("as_text", [True, False])
def test_a_byte_level_bpe_is_encoded_by_gigatoken_with_equal_ids(path, as_text):
    tokenizer = load_tokenizer(path, special_tokens_as_text=as_text)
    engine, fast = choose_engine(tokenizer, iter(["the cat", "a<|endoftext|>b"]))
    assert fast
    assert engine.name.startswith("gigatoken ")
    assert engine.reason is None
    encode = gigatoken_encoder(tokenizer)
    texts = ["the cat", "", "a<|endoftext|>b"]
    found, expected = encode(texts), tokenizer.encode_batch(texts)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert (tokenizer.end_of_document in found.ids) != as_text


def test_the_strings_of_the_probe_are_many_and_always_the_same(path):
    tokenizer = load_tokenizer(path)
    strings = probe_strings(tokenizer)
    assert len(strings) == 2000
    assert strings == probe_strings(tokenizer)
    everything = "".join(strings)
    everything.encode()  # no half characters
    assert len(set(everything)) > 3000
    assert "<|endoftext|>" in everything


def test_a_vocabulary_that_gigatoken_does_not_know_keeps_its_library(tmp_path):
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"},
    }
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content))
    engine, fast = choose_engine(load_tokenizer(path), iter(["a"]))
    assert not fast
    assert engine.name.startswith("tokenizers ")
    assert engine.reason.startswith("gigatoken does not know this vocabulary: ")
    with pytest.raises(UserError, match="--engine gigatoken: gigatoken does not know"):
        choose_engine(load_tokenizer(path), iter(["a"]), wanted="gigatoken")


def encoder_that_errs(text):
    def make(tokenizer):
        def encode(texts):
            batch = tokenizer.encode_batch(texts)
            wrong = [i for i, each in enumerate(texts) if text in each]
            ids = batch.ids.copy()
            for i in wrong:
                ids[batch.lengths[:i].sum()] += 1
            return Batch(ids, batch.lengths)

        return encode

    return make


@pytest.mark.parametrize("where", ["\u2028", "number 150"])
def test_one_different_id_in_a_string_or_a_document_is_enough(path, monkeypatch, where):
    monkeypatch.setattr(engine_module, "gigatoken_encoder", encoder_that_errs(where))
    documents = [f"document number {i}" for i in range(300)]
    engine, fast = choose_engine(load_tokenizer(path), iter(documents))
    assert not fast
    assert "gigatoken gives" in engine.reason
    assert "tokenizers" in engine.name


def test_no_more_than_the_first_documents_are_read(path):
    def documents():
        yield from ["x"] * 200
        raise AssertionError

    assert choose_engine(load_tokenizer(path), documents())[1]


def test_short_and_long_texts_in_any_order_have_equal_ids(path, monkeypatch):
    monkeypatch.setattr(engine_module, "_SHORT_CHARACTERS", 12)
    monkeypatch.setattr(engine_module, "_ROWS", 3)
    monkeypatch.setattr(engine_module, "_MANY", 50)
    tokenizer = load_tokenizer(path)
    encode = gigatoken_encoder(tokenizer)
    draw = random.Random(5)
    for _ in range(20):
        texts = ["the cat é "[: draw.randint(0, 9)] * draw.randint(0, 3) for _ in range(17)]
        found, expected = encode(texts), tokenizer.encode_batch(texts)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
    assert encode([]).ids.size == 0


def test_what_gigatoken_remembers_is_forgotten_now_and_then(path, monkeypatch):
    tokenizer, opened = load_tokenizer(path), []
    open_gigatoken = type(tokenizer).open_gigatoken
    monkeypatch.setattr(engine_module, "_REMEMBERED_CHARACTERS", 100)
    monkeypatch.setattr(
        type(tokenizer), "open_gigatoken", lambda self: opened.append(1) or open_gigatoken(self)
    )
    encode = gigatoken_encoder(tokenizer)
    for _ in range(10):
        assert encode(["the cat " * 5]).ids.tolist() == tokenizer.encode("the cat " * 5)
    assert len(opened) == 5


def test_a_failure_inside_gigatoken_is_a_mismatch(path, monkeypatch):
    class PanicException(BaseException):
        pass

    class Backend:
        def encode(self, _):
            raise PanicException("assertion failed")

    tokenizer = load_tokenizer(path)
    monkeypatch.setattr(type(tokenizer), "open_gigatoken", lambda _: Backend())
    engine, fast = choose_engine(tokenizer, iter(["a"]))
    assert (engine.reason, fast) == ("gigatoken failed: assertion failed", False)


def test_without_the_package_the_reason_says_so(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    assert choose_engine(load_tokenizer(path), iter([]))[0].reason == "gigatoken is not installed"


def test_the_reference_can_be_asked_for(path):
    engine, fast = choose_engine(load_tokenizer(path), iter(["a"]), wanted="reference")
    assert (engine.reason, fast) == ("asked for the reference", False)


def test_texts_that_spill_into_one_another_are_a_mismatch(path):
    tokenizer = load_tokenizer(path)

    def spill(texts):
        batch = tokenizer.encode_batch(texts)
        lengths = batch.lengths.copy()
        if len(texts) > 1:
            lengths[0], lengths[1] = lengths[0] - 1, lengths[1] + 1
        return Batch(np.asarray(batch.ids), lengths)

    compare(spill, tokenizer, [])
    with pytest.raises(EngineMismatchError, match="together"):
        compare(spill, tokenizer, ["ab", "c"])
