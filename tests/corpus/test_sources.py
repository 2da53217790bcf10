"""Raw inputs of every kind, good and bad."""

import gzip
import json
import os
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.read_texts import Account, Reading, count_lines, read_unit
from megatron_gptx.corpus.sources import divide, find_files


def read(path, *, stop=False, unit_bytes=1 << 20, reading=Reading()):  # noqa: B008
    """Return the texts of one input, and the accounts of its units."""
    texts, accounts = [], []
    for unit in divide(find_files([str(path)]), unit_bytes=unit_bytes):
        accounts.append(Account(stop=stop))
        texts += read_unit(unit, accounts[-1], reading)
    return texts, accounts


def write_lines(path, *lines):
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded))
    return path


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("unit_bytes", [1, 2, 3, 7, 20, 21, 22, 64, 1000])
def test_units_of_any_size_give_every_line_once(tmp_path, unit_bytes, ending):
    expected = [f"line {i} " + "é" * (i % 5) * (i % 11) for i in range(30)]
    between = ending or b"\n"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in expected]
    path = tmp_path / "x.jsonl"
    path.write_bytes(between.join(lines) + ending)
    texts, accounts = read(path, unit_bytes=unit_bytes)
    assert texts == expected
    assert sum(account.num_lines for account in accounts) == 30
    assert sum(account.text_bytes for account in accounts) == sum(
        len(text.encode()) for text in expected
    )


def test_long_lines_are_skipped_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_gptx.corpus.read_texts._SKIP_BLOCK", 5)
    monkeypatch.setattr("megatron_gptx.corpus.read_texts._LOOK_AHEAD", 40)
    path = write_lines(tmp_path / "x.jsonl", {"text": "a" * 500}, {"text": "b"}, {"text": "c" * 99})
    assert read(path, unit_bytes=50)[0] == ["a" * 500, "b", "c" * 99]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / "x.jsonl.gz")[0] == ["a" * 500, "b", "c" * 99]
    for name in ("x.jsonl", "x.jsonl.gz"):
        reading = Reading(longest_bytes=200)
        monkeypatch.setattr("megatron_gptx.corpus.read_texts._LINE_SLACK", 20)
        texts, accounts = read(tmp_path / name, reading=reading)
        assert texts == ["b", "c" * 99]
        (account,) = accounts
        assert account.rejected[0].reason == "longer than 200 bytes; raise --longest-document"


BAD_LINES = {
    b'{"text": "cut': "not JSON: ",
    b"": None,
    b"   \r": None,
    b'{"text": ""}': None,
    b'{"other": "x"}': "no key 'text'",
    b'{"text": null}': "'text' is null, not a string",
    b'{"text": 3}': "'text' is a number, not a string",
    b'{"text": true}': "'text' is a boolean, not a string",
    b'{"text": ["a", "b"]}': "'text' is a list, not a string",
    b'{"text": {"a": 1}}': "'text' is an object, not a string",
    b'["text"]': "not a JSON object but a list",
    b'"text"': "not a JSON object but a string",
    b"null": "not a JSON object but null",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_skipped_and_counted_or_stops(tmp_path, line, reason):
    path = write_lines(tmp_path / "x.jsonl", {"text": "one"}, line, {"text": "two"})
    texts, (account,) = read(path)
    assert texts == ["one", "two"]
    if reason is None:
        assert (account.empty, account.rejected) == (1, [])
        assert read(path, stop=True)[0] == texts
        return
    (entry,) = account.rejected
    assert (entry.path, entry.line, account.reasons.total()) == (str(path), 2, 1)
    assert entry.reason.startswith(reason)
    with pytest.raises(UserError) as caught:
        read(path, stop=True)
    assert str(caught.value).startswith(f"{path}:2: {reason}")


def test_the_line_number_of_a_stop_counts_from_the_start_of_the_file(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[{"text": "x"}] * 50, b"oops")
    with pytest.raises(UserError, match=r"x\.jsonl:51: not JSON"):
        read(path, stop=True, unit_bytes=30)
    assert count_lines(str(path), 10**9) == 50


def test_broken_utf8_in_a_line_is_replaced_and_counted_or_stops(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", b'{"text": "caf\xe9"}')
    texts, (account,) = read(path)
    assert (texts, account.repaired) == (["caf\ufffd"], 1)
    with pytest.raises(UserError, match=r"x\.jsonl:1: not UTF-8"):
        read(path, stop=True)


def test_half_characters_are_replaced_and_counted(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", rb'{"text": "a\ud800b"}', rb'{"text": "\ud83d\ude00"}')
    texts, (account,) = read(path)
    assert (texts, account.repaired) == (["a\ufffdb", "\U0001f600"], 1)


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"text": "x"}')
    assert read(path)[0] == ["x"]
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfplain")
    assert read(tmp_path / "x.txt")[0] == ["plain"]


def test_other_characters_stay_as_they_are(tmp_path):
    text = "a\x00b\r\nc\u2028d"
    path = write_lines(tmp_path / "x.jsonl", {"text": text})
    (tmp_path / "x.txt").write_bytes(text.encode())
    assert read(path)[0] == [text]
    assert read(tmp_path / "x.txt")[0] == [text]


def test_a_file_is_one_document_or_is_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "c.txt").touch()
    texts, (account,) = read(tmp_path)
    assert texts == ["one\ntwo\n"]
    assert [tuple(entry) for entry in account.rejected] == [
        (str(tmp_path / "b.txt"), None, "not UTF-8")
    ]
    assert account.empty == 1
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8"):
        read(tmp_path, stop=True)


def test_a_file_that_became_shorter_is_not_taken_for_whole(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[{"text": f"text {i}"} for i in range(100)])
    units = divide(find_files([str(path)]), unit_bytes=500)
    os.truncate(path, 700)
    accounts = [Account() for _ in units]
    pairs = zip(units, accounts, strict=True)
    texts = [text for unit, account in pairs for text in read_unit(unit, account, Reading())]
    assert texts == [f"text {i}" for i in range(len(texts))]
    short = [account.reasons for account in accounts if account.reasons]
    assert len(short) == len(units) - 1
    reason = "cannot be read further: it became shorter while it was read"
    assert all(reason in reasons for reasons in short)


def test_a_file_that_vanished_is_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (unit,) = divide(find_files([str(tmp_path)]))
    (tmp_path / "a.txt").unlink()
    account = Account()
    assert list(read_unit(unit, account, Reading())) == []
    assert account.rejected[0].reason == "No such file or directory"


def names(files, folder):
    return [os.path.relpath(file.path, folder) for file in files]


def test_folders_are_read_in_the_order_of_their_paths(tmp_path):
    for name in ("b.py", "a/z.py", "a/b/c.py", "a.py", "x.txt", "y.jsonl", "a b's/q.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    folder = str(tmp_path)
    assert names(find_files([folder], globs=["*.py"]), folder) == [
        "a/b/c.py",
        "a/z.py",
        "a b's/q.py",
        "a.py",
        "b.py",
    ]
    others: list[str] = []
    assert names(find_files([folder], passed_over=others), folder) == ["y.jsonl"]
    assert [os.path.relpath(path, folder) for path in others] == [
        "a b's/q.py",
        "a.py",
        "a/b/c.py",
        "a/z.py",
        "b.py",
        "x.txt",
    ]
    assert names(find_files([folder], globs=["a/*.py"]), folder) == ["a/b/c.py", "a/z.py"]


def test_list_files_name_more_inputs(tmp_path):
    for name in ("a.py", "b c.py"):
        (tmp_path / name).write_text("x")
    list_file = tmp_path / "list"
    list_file.write_bytes(f"\ufeff{tmp_path}/b c.py\r\n\r\n{tmp_path}/a.py\r\n".encode())
    assert names(find_files([], lists=[str(list_file)]), tmp_path) == ["b c.py", "a.py"]


@pytest.mark.parametrize(
    ("inputs", "lists", "message"),
    [
        ([], [], "no input files"),
        (["absent.txt"], [], "absent.txt: cannot be read: No such file"),
        (["."], [], r"\.: no file below it matches \*\.jsonl or .* or \*\.parquet; use --glob"),
        ([], ["absent"], "absent: cannot be read as a list of files"),
    ],
)
def test_missing_inputs_are_named(tmp_path, monkeypatch, inputs, lists, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_files(inputs, lists=lists)


def test_small_files_share_a_unit_and_order_is_kept(tmp_path):
    for name, size in (("a.txt", 4), ("b.txt", 4), ("c.txt", 4), ("d.jsonl", 25), ("e.txt", 4)):
        (tmp_path / name).write_text("x" * size)
    units = divide(find_files([str(tmp_path)], globs=["*"]), unit_bytes=10)
    found = [([Path(p).name for p in u.paths], u.span, u.num_bytes) for u in units]
    assert found == [
        (["a.txt", "b.txt"], None, 8),
        (["c.txt"], None, 4),
        (["d.jsonl"], (0, 10), 10),
        (["d.jsonl"], (10, 20), 10),
        (["d.jsonl"], (20, 25), 5),
        (["e.txt"], None, 4),
    ]
