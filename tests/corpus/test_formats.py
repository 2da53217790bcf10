"""What a file holds is told by its content, and nothing becomes a document in silence."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.formats import recognise
from megatron_gptx.corpus.read_texts import Account, Reading, read_unit
from megatron_gptx.corpus.sources import divide, find_files

LINES = b'{"text": "one two"}\n{"text": "three"}\n'
TEXTS = ["one two", "three"]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(*inputs, **options):
    texts, reasons = [], []
    for unit in divide(find_files(map(str, inputs), **options)):
        account = Account()
        texts += read_unit(unit, account, Reading())
        reasons += [(entry.line, entry.reason) for entry in account.rejected]
    return texts, reasons


@pytest.mark.parametrize("compressed", COMPRESS)
@pytest.mark.parametrize("name", ["x.json", "x.ndjson", "x.JSONL", "x.jsonl", "x.txt", "corpus"])
def test_lines_are_lines_whatever_the_file_is_called(tmp_path, name, compressed):
    path = tmp_path / f"{name}{compressed}"
    path.write_bytes(COMPRESS[compressed](LINES))
    assert read(path) == (TEXTS, [])


@pytest.mark.parametrize("compressed", [ending for ending in COMPRESS if ending])
def test_compression_is_told_by_content_and_damage_is_said(tmp_path, compressed):
    content = COMPRESS[compressed](LINES * 2000)
    (tmp_path / "x.jsonl").write_bytes(content)
    assert read(tmp_path / "x.jsonl") == (TEXTS * 2000, [])
    (tmp_path / "cut.jsonl").write_bytes(content[:-9])
    texts, ((_, reason),) = read(tmp_path / "cut.jsonl")
    assert texts == (TEXTS * 2000)[: len(texts)]
    assert "cannot be read further" in reason
    (tmp_path / f"no.jsonl{compressed}").write_bytes(b"\x80\x81 no such thing")
    assert len(read(tmp_path / f"no.jsonl{compressed}")[1]) == 1


def test_one_json_value_gives_its_records(tmp_path):
    path = tmp_path / "x.json"
    for value in ([{"text": "a"}, {"no": 1}, 3, {"text": "b"}], [{"text": "a"}, {"text": "b"}]):
        path.write_text(json.dumps(value, indent=1))
        texts, reasons = read(path)
        assert texts == ["a", "b"]
        bad = [(2, "no key 'text'"), (3, "not a JSON object but a number")]
        assert reasons == (bad if len(value) == 4 else [])
    path.write_text(json.dumps({"text": "a"}, indent=1))
    assert read(path) == (["a"], [])
    path.write_text(json.dumps({"text": "a"}))
    assert read(path) == (["a"], [])
    path.write_text("[1,\n oops")
    assert read(path) == ([], [(None, "not JSON: Expecting value in line 2")])
    path.write_text("")
    assert read(path) == ([], [])


def test_a_text_that_happens_to_be_json_stays_a_text(tmp_path):
    texts = {"a.map": '{"version": 3}\n', "b.py": "{'a': 1}\n{}\n", "c.txt": "{x}\n{y}\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name) == ([text], [])


@pytest.mark.parametrize("name", ["x.json", "x.txt"])
def test_lines_longer_than_what_is_looked_at_are_lines(tmp_path, name):
    texts = ["long " * 30_000, "longer " * 3_000_000, "short"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / name).write_text("\n".join(lines))
    assert read(tmp_path / name) == (texts, [])
    (tmp_path / name).write_text("\n".join(lines[1:]))
    assert recognise(str(tmp_path / name)) == ("lines" if name == "x.json" else "files")


def test_format_overrides_what_is_seen(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(LINES)
    assert read(tmp_path / "x.jsonl", wanted="text") == ([LINES.decode()], [])
    (tmp_path / "x.txt").write_bytes(LINES[:20])
    assert read(tmp_path / "x.txt") == ([LINES[:20].decode()], [])
    assert read(tmp_path / "x.txt", wanted="jsonl") == (TEXTS[:1], [])
    assert read(tmp_path / "x.txt", wanted="json") == (TEXTS[:1], [])
    (tmp_path / "x.md.bz2").write_bytes(bz2.compress(LINES[:20]))
    assert read(tmp_path / "x.md.bz2", wanted="jsonl") == (TEXTS[:1], [])
    assert "not a parquet file" in read(tmp_path / "x.txt", wanted="parquet")[1][0][1]


def test_a_text_beside_lines_is_passed_over_and_named(tmp_path):
    for name in ("a.json.gz", "README.txt", "b.tar", "deep/LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(LINES) if name == "a.json.gz" else b"Read me")
    others: list[str] = []
    assert read(tmp_path, passed_over=others) == (TEXTS, [])
    assert others == [str(tmp_path / name) for name in ("README.txt", "b.tar", "deep/LICENSE")]
    # Whoever asks for it gets it.
    assert read(tmp_path, globs=["*.txt", "*.gz"]) == (["Read me", *TEXTS], [])
    assert read(tmp_path, tmp_path / "README.txt") == ([*TEXTS, "Read me"], [])
    # Without lines, texts are what the folder is for.
    (tmp_path / "a.json.gz").unlink()
    assert read(tmp_path) == (["Read me"], [])
    (tmp_path / "README.txt").unlink()
    with pytest.raises(UserError, match="use --glob; there are 2 others"):
        read(tmp_path)


def test_an_archive_is_no_text(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    assert read(tmp_path / "x.tar.gz") == ([], [(None, "a tar archive, not a text; unpack it")])


def test_a_parquet_file_is_one_under_any_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "part-0000")
    assert read(tmp_path / "part-0000") == (TEXTS, [])


def test_capitals_are_part_of_no_ending(tmp_path):
    for name in ("a.JSONL", "b.Json.GZ", "c.TXT"):
        (tmp_path / name).write_bytes(gzip.compress(LINES) if name.endswith("GZ") else LINES)
    assert read(tmp_path) == (3 * TEXTS, [])
    (tmp_path / "PART.PARQUET").write_bytes(b"no such thing")
    assert "not a parquet file" in read(tmp_path / "PART.PARQUET")[1][0][1]
