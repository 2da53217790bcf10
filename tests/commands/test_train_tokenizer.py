"""The command line, its messages, and that it keeps what is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.tokenizer.build import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 50)
    return tmp_path


def train(folder, *arguments):
    tool = ROOT / "tools" / "train_tokenizer.py"
    return subprocess.run(
        [sys.executable, str(tool), "--output", "out/t.json", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_tokenizer_is_learned_once_and_then_kept(folder):
    done = train(folder, "a.txt", "--vocab-size", 265)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/t.json: 265 ids from 0.0 MB of text\n"
    tokenizer = load_tokenizer(folder / "out" / "t.json")
    assert tokenizer.vocab_size == 265
    assert tokenizer.end_of_document == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "t.json",
        "t.manifest.json",
    ]
    assert train(folder, "a.txt", "--vocab-size", 265).stdout == "out/t.json: up to date\n"


def test_another_tokenizer_in_the_way_is_refused_or_replaced(folder):
    train(folder, "a.txt", "--vocab-size", 265)
    done = train(folder, "a.txt", "--vocab-size", 262)
    assert done.returncode == 2
    assert done.stderr.startswith("out/t.json: a tokenizer made from other inputs or options")
    assert train(folder, "a.txt", "--vocab-size", 262, "--overwrite").returncode == 0
    assert load_tokenizer(folder / "out" / "t.json").vocab_size == 262
    (folder / "out" / "t.json").write_text("edited")
    assert train(folder, "a.txt", "--vocab-size", 262).returncode == 2


@pytest.mark.parametrize("model", ["wordpiece", "unigram"])
def test_other_models_can_be_learned(folder, model):
    done = train(folder, "a.txt", "--vocab-size", 270, "--model", model)
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(folder / "out" / "t.json").end_of_document == 0


def test_a_small_text_says_that_it_offers_fewer_ids(folder):
    done = train(folder, ".", "--glob", "*.txt", "--vocab-size", 9000)
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
def test_mistakes_give_one_message_and_status_2(folder, arguments, message):
    (folder / "b.txt").write_bytes(b"\xff\xff")
    done = train(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()
