"""Bad content, one kind after another: each has a named outcome, and all else is kept."""

import contextlib
import gzip
import json
import os

import pytest
import zstandard

from megatron_gptx.commands.preprocess import main
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest
from megatron_gptx.tokenizer.build import load_tokenizer

GOOD = ["the first", "é 漢字 \U0001f600", "the last"]
BROKEN = "not JSON: Expecting property name enclosed in double quotes"


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def preprocess(tmp_path, capsys):
    """Run the tool on files; return its status, what it printed, the documents and the manifest."""

    def preprocess(*arguments):
        prefix = tmp_path / "out" / "x"
        options = ["--tokenizer", "bytes", "--output-prefix", str(prefix)]
        status = main([*map(str, arguments), *options])
        printed = "".join(capsys.readouterr())
        assert "Traceback" not in printed
        if status:
            assert not prefix.with_name("x.idx").exists()
            assert not prefix.with_name("x.bin").exists()
            return status, printed, None, None
        dataset, tokenizer = IndexedDataset(prefix), load_tokenizer("bytes")
        documents = [dataset.document(i).tolist() for i in range(dataset.num_documents)]
        return (
            0,
            printed,
            list(map(tokenizer.decode, documents)),
            read_manifest(manifest_path(prefix)),
        )

    return preprocess


def line(value):
    return json.dumps(value, ensure_ascii=False).encode()


# Name: the bad line, and either why it is rejected or the text that it gives.
LINES = {
    "malformed": (b"{broken", BROKEN),
    "cut off": (b'{"text": "abc', "not JSON: Unterminated string starting at"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not JSON: Extra data"),
    "missing key": (line({"other": "x"}), "no key 'text'"),
    "null": (line({"text": None}), "'text' is null, not a string"),
    "number": (line({"text": 7}), "'text' is a number, not a string"),
    "boolean": (line({"text": True}), "'text' is a boolean, not a string"),
    "list": (line({"text": ["a", "b"]}), "'text' is a list, not a string"),
    "object": (line({"text": {"a": "b"}}), "'text' is an object, not a string"),
    "no object": (line(["text"]), "not a JSON object but a list"),
    "nested too deeply": (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    "NUL byte": (b'{"text": "a\x00b"}', "not JSON: Invalid control character at"),
    "special token": (line({"text": "a<|endoftext|>"}), "spells out the special token"),
    "too long": (line({"text": "x" * 5000}), "longer than 2,000 bytes"),
    "blank": (b"", None),
    "only white space": (b" \t\r", None),
    "empty text": (line({"text": ""}), None),
    "byte order mark": (b"\xef\xbb\xbf" + line({"text": "x"}), ["x"]),
    "lone surrogate": (rb'{"text": "a\ud800b"}', ["a\ufffdb"]),
    "invalid UTF-8": (b'{"text": "caf\xe9"}', ["caf\ufffd"]),
    "escaped NUL": (rb'{"text": "a\u0000b"}', ["a\x00b"]),
    "CRLF": (line({"text": "a\r\nb"}) + b"\r", ["a\r\nb"]),
    "key twice": (b'{"text": "a", "text": "b"}', ["b"]),
}
REPAIRED = {"lone surrogate", "invalid UTF-8"}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("first", [True, False], ids=["first", "between"])
def test_a_bad_line(preprocess, tmp_path, name, first):
    bad, outcome = LINES[name]
    lines = [line({"text": text}) for text in GOOD]
    lines.insert(0 if first else 2, bad)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    options = ("--special-tokens-in-text", "error", "--longest-document", 2000)
    status, printed, documents, manifest = preprocess(path, *options)
    assert status == 0
    expected = list(GOOD)
    if isinstance(outcome, list):
        expected[0 if first else 2 : 0 if first else 2] = outcome
    assert documents == expected
    assert manifest["repaired"] == (name in REPAIRED)
    assert manifest["empty"] == (outcome is None)
    if isinstance(outcome, str):
        (reason,) = manifest["rejected"]
        assert reason.startswith(outcome)
        assert manifest["rejected"] == {reason: 1}
        assert f"rejected {path}:{1 if first else 3}: {outcome}" in printed
    else:
        assert manifest["rejected"] == {}


@pytest.mark.parametrize("name", [name for name, (_, why) in LINES.items() if why is not None])
def test_a_bad_line_stops_where_that_is_asked(preprocess, tmp_path, name):
    bad, outcome = LINES[name]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([*(line({"text": text}) for text in GOOD), bad]))
    options = ("--special-tokens-in-text", "error", "--longest-document", 2000)
    status, printed, *_ = preprocess(path, *options, "--on-error", "stop")
    if name == "invalid UTF-8":
        outcome = "not UTF-8"
    if isinstance(outcome, str):
        assert status == 2
        assert f"{path}:4: {outcome}" in printed
    else:
        assert status == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no document: all files of the input are empty"),
        (
            b"\n\n \n",
            "no document in 1 part(s) of the input for the key 'text': 3 empty, 0 rejected",
        ),
        (
            line({"text": ""}) * 1,
            "no document in 1 part(s) of the input for the key 'text': 1 empty",
        ),
        (b"{broken\n", f"1 rejected, such as in.jsonl:1: {BROKEN}"),
    ],
    ids=["empty file", "blank lines", "only empty documents", "only malformed lines"],
)
def test_input_without_a_document_is_an_error(preprocess, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(content)
    status, printed, *_ = preprocess("in.jsonl")
    assert (status, message in printed) == (2, True), printed
    assert not (tmp_path / "out" / "x.d").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("b.txt", b"caf\xe9", "not UTF-8"),
        ("b.txt", "x".encode("utf-16"), "not UTF-8"),
        ("b.txt", b"", None),
        ("b.txt.gz", b"no gzip", "Not a gzipped file (b'no')"),
        ("b.txt.zst", b"no zstd", "zstd decompressor error: Unknown frame descriptor"),
        ("b.parquet", b"PAR1 no parquet", "not a parquet file: "),
        ("b.parquet", b"", "not a parquet file: "),
        ("b.jsonl", b"", None),
    ],
)
def test_a_bad_file_between_good_ones(preprocess, tmp_path, name, content, reason):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    for good, text in zip(("a.txt", "c.txt"), GOOD, strict=False):
        (tmp_path / good).write_text(text, encoding="utf-8")
    (tmp_path / name).write_bytes(content)
    status, printed, documents, manifest = preprocess(tmp_path, "--glob", "*")
    assert (status, documents) == (0, GOOD[:2])
    if reason is not None:
        assert f"rejected {tmp_path / name}: {reason}" in printed
    assert sum(manifest["rejected"].values()) == (reason is not None)


MANY = [f"{i} " * 50 for i in range(2000)]


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_stream_gives_everything_before_the_damage(preprocess, tmp_path, kind, damage):
    content = b"".join(line({"text": text}) + b"\n" for text in MANY)
    compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    packed = bytearray(compress[kind](content))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"in.jsonl.{kind}"
    path.write_bytes(packed)
    (tmp_path / "z.txt").write_text("after it")
    status, printed, *_ = preprocess(path, "--on-error", "stop")
    assert (status, f"{path}:" in printed) == (2, True)
    status, printed, documents, manifest = preprocess(path, tmp_path / "z.txt")
    assert status == 0
    kept = len(documents) - 1
    assert documents[-1] == "after it"
    if damage == "cut":  # a flipped bit may show late, in text that is no JSON or another text
        assert documents[:-1] == MANY[:kept]
        assert 200 < kept < len(MANY)
        assert f"{path}:{kept + 1}: cannot be read further: " in printed
    assert "cannot be read further" in " ".join(manifest["rejected"])


def test_a_parquet_file_with_damaged_pages_gives_the_other_groups(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    options = {"row_group_size": 500, "use_dictionary": False, "write_page_checksum": True}
    parquet.write_table(pyarrow.table({"text": MANY}), path, **options)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle] ^= 0xFF
    path.write_bytes(content)
    _, printed, documents, manifest = preprocess(path)
    assert documents == MANY[:500] + MANY[1000:]
    assert f"rejected {path}: damaged parquet: " in printed
    assert sum(manifest["rejected"].values()) == 1


def test_a_document_of_two_gibibytes_is_rejected_in_little_memory(preprocess, tmp_path):
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", 2 << 30)  # sparse: it takes no room
    with (tmp_path / "b.jsonl").open("wb") as file:
        file.write(line({"text": "before"}) + b'\n{"text": "')
        file.seek(2 << 30, os.SEEK_CUR)
        file.write(b'"}\n' + line({"text": "after"}))
    _, printed, documents, manifest = preprocess(tmp_path, "--glob", "[ab].*", "--workers", 2)
    assert documents == ["before", "after"]
    reason = "longer than 1,073,741,824 bytes; raise --longest-document"
    assert manifest["rejected"] == {reason: 2}
    assert f"rejected {tmp_path}/b.jsonl:2: {reason}" in printed


def test_a_line_of_300_megabytes_is_a_document(tmp_path, capsys):
    escaped = r"\u0061" * 50_000_000
    (tmp_path / "in.jsonl").write_text(f'{{"text": "x"}}\n{{"text": "{escaped}"}}\n{{"text": "y"}}')
    prefix = tmp_path / "x"
    options = ["--tokenizer", "bytes", "--output-prefix", str(prefix)]
    assert main([str(tmp_path / "in.jsonl"), *options]) == 0
    dataset = IndexedDataset(prefix)
    assert dataset.document_lengths(0, 3).tolist() == [1, 50_000_000, 1]
    del dataset
    for path in (tmp_path / "in.jsonl", tmp_path / "x.bin"):
        with contextlib.suppress(OSError):
            path.unlink()  # they are large
    capsys.readouterr()
