"""Texts that lie inside of other objects, in lines and in tables."""

import json

import pytest

from megatron_gptx.corpus.read_texts import Account, Reading, read_unit
from megatron_gptx.corpus.sources import divide, find_files

RECORDS = [
    {"meta": {"text": "one", "deep": {"er": "x"}}},
    {"meta": {"text": "two \ud800", "deep": None}},
    {"meta": None},
    {"meta": {"text": "three", "deep": {"er": "y"}}, "meta.text": "itself"},
]


def read(path, key):
    texts, reasons = [], []
    for unit in divide(find_files([str(path)])):
        account = Account()
        texts += read_unit(unit, account, Reading(key))
        reasons += [(entry.line, entry.reason) for entry in account.rejected]
    return texts, reasons


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_dotted_key_leads_into_objects(tmp_path, name):
    text = "\n".join(map(json.dumps, RECORDS)) if name == "x.jsonl" else json.dumps(RECORDS)
    (tmp_path / name).write_text(text)
    texts, reasons = read(tmp_path / name, "meta.text")
    assert texts == ["one", "two \ufffd", "itself"]
    assert reasons == [(3, "no key 'meta.text'")]
    texts, reasons = read(tmp_path / name, "meta.deep.er")
    assert texts == ["x", "y"]
    assert reasons == [(2, "no key 'meta.deep.er'"), (3, "no key 'meta.deep.er'")]
    assert read(tmp_path / name, "meta")[1][0] == (1, "'meta' is an object, not a string")


ROWS = {
    "meta": [{"text": "one", "n": {"a": "x"}}, None, {"text": None, "n": None}],
    "a.b": ["dotted", "name", None],
}


@pytest.fixture(params=["parquet", "datasets"])
def table(tmp_path, request):
    """Write a table with a column of structs."""
    pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    if request.param == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(ROWS), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"
    datasets = pytest.importorskip("datasets", reason="datasets is an extra")
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "d"))
    return f"datasets:{tmp_path / 'd'}"


def test_a_dotted_column_is_a_field_of_a_struct(table):
    assert read(table, "meta.text") == (
        ["one"],
        [(2, "'meta.text' is null, not a string"), (3, "'meta.text' is null, not a string")],
    )
    assert read(table, "meta.n.a")[0] == ["x"]
    assert read(table, "a.b")[0] == ["dotted", "name"]
    texts, reasons = read(table, "meta.none")
    assert texts == []
    assert reasons
    assert read(table, "other.text")[1] == [(None, "no column 'other.text', only meta, a.b")]
