"""Compressed lines, tables, URLs, wildcards and standard input give the texts of plain files."""

import functools
import gzip
import io
import json

import pytest
import zstandard

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.open_input import InputFile, open_input
from megatron_gptx.corpus.read_texts import Account, Reading, read_unit
from megatron_gptx.corpus.sources import divide, find_files
from megatron_gptx.corpus.standard_input import spooled

TEXTS = [f"document {i} " + "é" * (i % 5) for i in range(200)]
LINES = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()


def read(*inputs, unit_bytes=1000, reading=Reading(), stop=False, files=None):  # noqa: B008
    texts, accounts = [], []
    for unit in divide(files or find_files(map(str, inputs)), unit_bytes=unit_bytes):
        accounts.append(Account(stop=stop))
        texts += read_unit(unit, accounts[-1], reading)
    return texts, accounts


def rejected(accounts):
    return [(entry.line, entry.reason) for account in accounts for entry in account.rejected]


def compress(name, content=LINES):
    return gzip.compress(content) if name.endswith(".gz") else zstandard.compress(content)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_compressed_lines_are_one_unit(tmp_path, name):
    (tmp_path / name).write_bytes(compress(name))
    texts, (account,) = read(tmp_path)
    assert texts == TEXTS
    assert account.num_lines == 200


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_several_frames_are_read_to_the_last(tmp_path, name):
    pieces = [LINES[:1001], b"", LINES[1001:]]
    (tmp_path / name).write_bytes(b"".join(compress(name, piece) for piece in pieces))
    assert read(tmp_path)[0] == TEXTS


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.zst"])
def test_a_compressed_text_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes(compress(name, b"one\ntwo"))
    assert read(tmp_path / name)[0] == ["one\ntwo"]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_zstd_stream_is_read_in_pieces_of_any_size(tmp_path, size):
    (tmp_path / "x.zst").write_bytes(zstandard.compress(LINES))
    with open_input(str(tmp_path / "x.zst")) as file:
        pieces = iter(functools.partial(file.read, size), b"")
        assert b"".join(pieces) == LINES


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": [*TEXTS, None], "n": [*[1] * 200, None], "b": [b"x"] * 201})
    parquet.write_table(table, path, row_group_size=64)
    return path


def test_the_rows_of_a_parquet_file_are_documents(parquet):
    texts, accounts = read(parquet)
    assert texts == TEXTS
    assert [account.num_lines for account in accounts] == [64, 64, 64, 9]
    assert rejected(accounts) == [(9, "'text' is null, not a string")]
    with pytest.raises(UserError, match=r"x\.parquet:201: 'text' is null"):
        read(parquet, stop=True)


def test_a_column_that_is_missing_or_holds_numbers_is_said(parquet):
    texts, accounts = read(parquet, reading=Reading("n"))
    assert texts == []
    assert sum(account.reasons["'n' is a number, not a string"] for account in accounts) == 200
    _, accounts = read(parquet, reading=Reading("b"))
    assert sum(account.reasons["'b' is bytes, not a string"] for account in accounts) == 201
    _, accounts = read(parquet, reading=Reading("code"))
    assert set(rejected(accounts)) == {(None, "no column 'code', only text, n, b")}


@pytest.fixture
def dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra")
    datasets.Dataset.from_dict({"text": [*TEXTS, None]}).save_to_disk(str(tmp_path / "d"))
    return f"datasets:{tmp_path / 'd'}"


def test_a_dataset_of_the_datasets_library_is_divided_by_rows(dataset):
    texts, accounts = read(dataset)
    assert texts == TEXTS
    assert len(accounts) > 2
    with pytest.raises(UserError, match=r"d:201: 'text' is null"):
        read(dataset, stop=True)
    _, accounts = read(dataset, reading=Reading("code"))
    assert set(rejected(accounts)) == {(None, "no column 'code', only text")}


def test_a_dataset_has_a_version(dataset, tmp_path):
    import datasets

    before = find_files([dataset])
    assert before == find_files([dataset])
    datasets.Dataset.from_dict({"text": ["other"]}).save_to_disk(str(tmp_path / "e"))
    (other,) = find_files([f"datasets:{tmp_path / 'e'}"])
    assert other.version != before[0].version


def test_a_dataset_that_cannot_be_loaded_is_named(tmp_path):
    pytest.importorskip("datasets", reason="datasets is an extra")
    with pytest.raises(UserError, match=r"datasets:.*none: cannot be loaded"):
        find_files([f"datasets:{tmp_path / 'none'}"])


def test_urls_and_their_wildcards_are_read_by_ranges(tmp_path):
    pytest.importorskip("fsspec", reason="fsspec is an extra")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES))
    assert read(f"file://{tmp_path}/b.jsonl")[0] == TEXTS
    texts, accounts = read(f"file://{tmp_path}/*.json*")
    assert texts == TEXTS * 2
    assert len(accounts) > 3
    for absent, message in (("c.jsonl", "c.jsonl: cannot be read"), ("*.none", "no file matches")):
        with pytest.raises(UserError, match=message):
            find_files([f"file://{tmp_path}/{absent}"])
    with pytest.raises(UserError, match=r"nosuch://x/y.jsonl: cannot be read: ValueError"):
        find_files(["nosuch://x/y.jsonl"])


def test_a_remote_file_of_unknown_size_is_one_stream(monkeypatch):
    unit_of = lambda *version: divide([InputFile("http://x/y.jsonl", *version)])  # noqa: E731
    assert [unit.kind for unit in unit_of(0, "")] == ["stream"]
    assert [unit.kind for unit in unit_of(9, "")] == ["lines"]


def test_an_error_of_a_remote_file_system_is_rejected_or_stops(monkeypatch):
    class Broken(io.BytesIO):
        def seek(self, *_):
            raise ValueError("cannot seek")

    monkeypatch.setattr("megatron_gptx.corpus.read_texts.open_input", lambda _: Broken(LINES))
    files = [InputFile("s3://x/y.jsonl", len(LINES), "1")]
    texts, accounts = read(files=files, unit_bytes=len(LINES) - 100)
    assert texts == TEXTS[: len(texts)]
    assert 190 < len(texts) < 200
    assert rejected(accounts) == [(1, "cannot be read further: ValueError: cannot seek")]
    with pytest.raises(UserError, match=r"s3://x/y\.jsonl:1: cannot be read further: ValueError"):
        read(files=files, unit_bytes=len(LINES) - 100, stop=True)


def test_wildcards_stand_for_files_sorted_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "odd[1].txt"):
        (tmp_path / name).write_text(name)
    assert [file.path for file in find_files(["[ab].*"])] == ["a.txt", "b.txt"]
    assert [file.path for file in find_files(["**/c.*"])] == ["deep/er/c.txt"]
    assert [file.path for file in find_files(["odd[1].txt"])] == ["odd[1].txt"]
    with pytest.raises(UserError, match=r"\*\.none: no file matches"):
        find_files(["*.none"])


def test_standard_input_is_a_file_while_it_is_needed(tmp_path):
    with spooled(tmp_path / "p.d", io.BytesIO(LINES)) as first:
        assert read(files=[first])[0] == TEXTS
        with (
            pytest.raises(UserError, match="another run is writing"),
            spooled(tmp_path / "p.d", io.BytesIO(b"")),
        ):
            pass
        assert read(files=[first])[0] == TEXTS
    assert not (tmp_path / "p.d").exists()
    with spooled(tmp_path / "p.d", io.BytesIO(LINES)) as second:
        assert first == second
    with spooled(tmp_path / "p.d", io.BytesIO(LINES[:-9])) as other:
        assert other.version != first.version
