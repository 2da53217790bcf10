"""WordPiece and Unigram vocabularies, learned and used like any other."""

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.engine import choose_engine
from megatron_gptx.tokenizer.train import train_unigram, train_wordpiece

TEXTS = [f"word{i % 7} and {'other' * (i % 3)} things, café\n" for i in range(200)]


@pytest.fixture
def load(tmp_path):
    def load(content):
        (tmp_path / "t.json").write_text(content, encoding="utf-8")
        return load_tokenizer(tmp_path / "t.json")

    return load


def test_wordpiece_gives_whole_words_and_special_tokens_first(load):
    tokenizer = load(train_wordpiece(TEXTS, vocab_size=200))
    assert tokenizer.end_of_document == 0
    assert len(tokenizer.encode("things and things")) == 3
    assert tokenizer.decode(tokenizer.encode("other things, café")) == "other things, café"
    assert tokenizer.encode("漢") == [1]
    assert 0 not in tokenizer.encode("<|endoftext|>")
    engine, fast = choose_engine(tokenizer, iter(TEXTS))
    assert not fast, engine


def test_unigram_brings_every_text_back(load):
    tokenizer = load(train_unigram(TEXTS, vocab_size=300))
    assert tokenizer.end_of_document == 0
    for text in ("word3 and things", "漢字 \n\t x", "<|endoftext|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1} & set(ids)


@pytest.mark.parametrize(
    ("train", "size"), [(train_wordpiece, 2), (train_wordpiece, 9), (train_unigram, 257)]
)
def test_a_vocabulary_that_is_too_small_is_refused(train, size):
    with pytest.raises(UserError, match=f"vocab_size {size} is too small"):
        train(TEXTS, vocab_size=size)
