"""What the tool prints, and its messages."""

import numpy as np
import pytest

from megatron_gptx.commands import inspect
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.train import train_byte_level_bpe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text(train_byte_level_bpe(["a b c"], vocab_size=257))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    with IndexedDatasetWriter(tmp_path / "data", np.uint16) as writer:
        writer.add_document([*tokenizer.encode("hällo"), tokenizer.end_of_document])
        writer.add_document([300])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_summary_shows_counts_lengths_and_entropy(run, folder):
    done = run(inspect, "data")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "dataset      data",
        "documents    2 in 2 sequences",
        "tokens       8 as uint16",
        "ids          7 different, the largest 300",
        "entropy      1.9062 nats, 2.7500 bits per token (unigram)",
        "tokens per document",
        "  up to             0             0",
        f"  up to             1             1 {'#' * 40}",
        "  up to             2             0",
        "  up to             4             0",
        f"  up to             8             1 {'#' * 40}",
    ]


def test_a_document_is_shown_as_ids_or_as_text(run, folder):
    assert run(inspect, "data", "--document", 1).stdout == "300\n"
    done = run(inspect, "data", "--document", 0, "--tokenizer", "t.json")
    assert done.stdout == "hällo<|endoftext|>\n"


def test_repeated_documents_are_counted_and_lengths_drawn(run, folder):
    with IndexedDatasetWriter(folder / "many", np.uint16) as writer:
        for document in ([1, 2], [3], [1, 2], [], [], [3], [1, 2], [4]):
            writer.add_document(document)
    done = run(inspect, "many", "--duplicates", "--png", "lengths.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "duplicates   3 documents repeat an earlier one, 5 tokens (55.56%)",
        "              3 times document 0",
        "              2 times document 1",
        "picture      lengths.png",
    ]
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    done = run(inspect, "many", "--png", "lengths.nothing")
    assert (done.returncode, "lengths.nothing: cannot be written" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent.idx: no such file"),
        (["data", "--document", 2], "data: no document 2; they run from 0 to 1"),
        (["data", "--document", 1, "--tokenizer", "t.json"], "id 300 of document 1 is outside"),
    ],
)
def test_mistakes_give_one_message_and_status_2(run, folder, arguments, message):
    done = run(inspect, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
