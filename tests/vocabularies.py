"""One small vocabulary of every kind, to be used where a kind could make a difference."""

import base64
import io
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_gptx.tokenizer.train import train_byte_level_bpe, train_unigram, train_wordpiece

TEXTS = ["the model learns a list of words", "one list and the other, a model"] * 20
KINDS = ("byte-level", "unigram", "wordpiece", "metaspace", "gpt2", "sentencepiece", "tiktoken")


def write_vocabulary(kind: str, folder: Path) -> str:
    """Write a vocabulary's files and return what `data.tokenizer` takes; `bytes` needs none."""
    if kind == "bytes":
        return kind
    folder.mkdir(parents=True, exist_ok=True)
    return str(_WRITERS[kind](folder))


def _json(folder: Path, content: str) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    return path


def _metaspace(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _json(folder, tokenizer.to_str())


def _gpt2(folder: Path) -> Path:
    content = json.loads(train_byte_level_bpe(TEXTS, vocab_size=280))["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [" ".join(pair) for pair in content["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return folder / "vocab.json"


def _sentencepiece(folder: Path) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is an extra")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=90,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = folder / "own.model"
    path.write_bytes(model.getvalue())
    return path


def _tiktoken(folder: Path) -> Path:
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    path = folder / "r50k_base.tiktoken"
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"th", b"the", b" l", b" li", b" lis", b" list", b" a"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines))
    return path


_WRITERS = {
    "byte-level": lambda folder: _json(folder, train_byte_level_bpe(TEXTS, vocab_size=280)),
    "unigram": lambda folder: _json(folder, train_unigram(TEXTS, vocab_size=300)),
    "wordpiece": lambda folder: _json(folder, train_wordpiece(TEXTS, vocab_size=90)),
    "metaspace": _metaspace,
    "gpt2": _gpt2,
    "sentencepiece": _sentencepiece,
    "tiktoken": _tiktoken,
}
