"""Vocabularies of every kind, small enough for a test."""

import io
import json

import pytest

from megatron_gptx.tokenizer.train import train_byte_level_bpe

CORPUS = ["the cat sat on the mat and the dog", "one two three four five", "é 漢字 x"] * 20


@pytest.fixture
def train_pieces(tmp_path):
    """Train a SentencePiece model; return its file."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is an extra")

    def train(name="x.model", **options):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=model,
            vocab_size=340,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"model_type": "bpe", **options},
        )
        (tmp_path / name).write_bytes(model.getvalue())
        return tmp_path / name

    return train


@pytest.fixture
def write_json(tmp_path):
    """Write a tokenizer.json with added tokens that the file does not call special."""

    def write(*added, special=False, name="tokenizer.json"):
        content = json.loads(train_byte_level_bpe(CORPUS, vocab_size=300))
        content["added_tokens"][0]["special"] = special
        for token in added:
            number = len(content["model"]["vocab"]) + len(content["added_tokens"]) - 1
            entry = {**content["added_tokens"][0], "id": number, "content": token}
            content["added_tokens"].append(entry)
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write
