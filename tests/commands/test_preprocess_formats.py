"""preprocess on the command line says how each file was read, and what it passed over."""

import gzip
import io

import pytest

from megatron_gptx.commands import preprocess, tokenizer
from megatron_gptx.dataset.indexed_dataset import IndexedDataset

LINES = b'{"text": "one two"}\n{"text": "three"}\n'
ARGUMENTS = ["--tokenizer", "bytes", "--output-prefix", "data"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Go to a folder with lines, a text that speaks of them, and an archive."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "in" / "README.txt").write_text("Read me")
    (tmp_path / "in" / "b.json.br").write_bytes(b"\x0b")
    return tmp_path


def documents():
    dataset = IndexedDataset("data")
    return [bytes(dataset.document(i).tolist()) for i in range(dataset.num_documents)]


def test_a_readme_beside_lines_is_no_document_and_is_named(folder, capsys):
    assert preprocess.main(["in", *ARGUMENTS]) == 0
    assert documents() == [b"one two", b"three"]
    printed = capsys.readouterr()
    assert "read as      lines of JSON: 1\n" in printed.out
    assert printed.err == (
        "passed over  2 files: in/README.txt, in/b.json.br; --glob or their names take them\n"
    )
    words = ["in", "--vocab-size", "257", "--output", "t.json"]
    assert tokenizer.main(words) == 0
    assert "passed over  2 files: in/README.txt" in capsys.readouterr().err


def test_a_file_of_json_lines_is_one_document_per_line_and_format_overrides_it(folder, capsys):
    (folder / "corpus.json").write_bytes(LINES)
    assert preprocess.main(["corpus.json", *ARGUMENTS]) == 0
    assert documents() == [b"one two", b"three"]
    assert preprocess.main(["corpus.json", *ARGUMENTS, "--format", "text"]) == 2
    assert "made from other inputs is there" in capsys.readouterr().err
    assert preprocess.main(["corpus.json", *ARGUMENTS, "--format", "text", "--overwrite"]) == 0
    assert documents() == [LINES]
    assert "read as      whole text: 1\n" in capsys.readouterr().out


def test_standard_input_may_be_one_text(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    assert preprocess.main(["-", *ARGUMENTS, "--format", "text"]) == 0
    assert documents() == [LINES]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    assert preprocess.main(["-", *ARGUMENTS, "--overwrite"]) == 0
    assert documents() == [b"one two", b"three"]
