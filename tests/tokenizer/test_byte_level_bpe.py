"""Learned vocabularies: their layout, and that they repeat."""

import json
import subprocess
import sys

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.train import train_byte_level_bpe

TEXTS = [f"word{i % 7} and {'other' * (i % 3)} things\n" for i in range(200)]


def test_the_end_of_a_document_and_all_bytes_come_first():
    vocab = json.loads(train_byte_level_bpe(TEXTS, vocab_size=270))["model"]["vocab"]
    assert vocab["<|endoftext|>"] == 0
    assert sorted(vocab.values()) == list(range(270))
    assert all(len(token) == 1 for token, id in vocab.items() if 1 <= id <= 256)


def test_fewer_merges_than_asked_for_are_no_error():
    vocab = json.loads(train_byte_level_bpe(["ab ab"], vocab_size=5000))["model"]["vocab"]
    assert len(vocab) < 262


def test_two_processes_learn_the_same_file():
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "from megatron_gptx.tokenizer.train import train_byte_level_bpe\n"
        f"sys.stdout.write(train_byte_level_bpe({TEXTS!r}, vocab_size=300))"
    )
    command = [sys.executable, "-c", code, *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == train_byte_level_bpe(TEXTS, vocab_size=300)


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size 256 is too small"):
        train_byte_level_bpe(TEXTS, vocab_size=256)
