"""The command line, its messages, and that it keeps what is there."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.commands import tokenizer
from megatron_gptx.tokenizer.build import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(run):
    return lambda *arguments: run(tokenizer, "--output", "out/t.json", *arguments)


def test_the_tool_learns_a_tokenizer(folder):
    tool = ROOT / "tools" / "train_tokenizer.py"
    words = (sys.executable, tool, "a.txt", "--vocab-size", "265", "--output", "t.json")
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "t.json: 265 ids from 0.0 MB of text\n"


def test_a_tokenizer_is_learned_once_and_then_kept(train, folder):
    done = train("a.txt", "--vocab-size", 265)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/t.json: 265 ids from 0.0 MB of text\n"
    learned = load_tokenizer(folder / "out" / "t.json")
    assert (learned.vocab_size, learned.end_of_document) == (265, 0)
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "t.json",
        "t.manifest.json",
    ]
    assert train("a.txt", "--vocab-size", 265).stdout == "out/t.json: up to date\n"


def test_another_tokenizer_in_the_way_is_refused_or_replaced(train, folder):
    train("a.txt", "--vocab-size", 265)
    done = train("a.txt", "--vocab-size", 262)
    assert done.returncode == 2
    assert done.stderr.startswith("out/t.json: a tokenizer made from other inputs or options")
    assert train("a.txt", "--vocab-size", 262, "--overwrite").returncode == 0
    assert load_tokenizer(folder / "out" / "t.json").vocab_size == 262
    (folder / "out" / "t.json").write_text("edited")
    assert train("a.txt", "--vocab-size", 262).returncode == 2


@pytest.mark.parametrize("model", ["wordpiece", "unigram"])
def test_other_models_can_be_learned(train, folder, model):
    done = train("a.txt", "--vocab-size", 270, "--model", model)
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(folder / "out" / "t.json").end_of_document == 0


def test_a_small_text_says_that_it_offers_fewer_ids(train, folder):
    done = train(".", "--glob", "*.txt", "--vocab-size", 9000)
    assert done.returncode == 0
    assert done.stderr == "the text offers no more than these; asked for 9,000\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", 300], "no input files"),
        (["a.txt", "--vocab-size", 3], "vocab_size 3 is too small"),
        (["b.txt", "--vocab-size", 300], "no text in 1 file(s): 1 rejected"),
    ],
)
def test_mistakes_give_one_message_and_status_2(train, folder, arguments, message):
    (folder / "b.txt").write_bytes(b"\xff\xff")
    done = train(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (folder / "out").exists()
