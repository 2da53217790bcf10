"""merge, split and verify on the command line: what they print, and their messages."""

import json
import re

import numpy as np
import pytest

from megatron_gptx.commands import convert, inspect, merge, preprocess, split, verify
from megatron_gptx.data.preflight import dataset_problems
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.mmididx import bin_path
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.tokenizer.train import train_byte_level_bpe
from tests.runs import tiny_config
from tests.vocabularies import KINDS, write_vocabulary


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Go to a folder with a tokenizer and a dataset of ten documents."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text(train_byte_level_bpe(["a b"], vocab_size=257))
    lines = [json.dumps({"text": f"text {i}"}) for i in range(10)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = ["in.jsonl", "--tokenizer", "t.json", "--output-prefix", "data", "--append-eod"]
    assert preprocess.main(arguments) == 0
    return tmp_path


def test_what_was_divided_and_merged_again_is_the_same(run, folder):
    status, output, _ = run(split, "data", "--shares", "7,3,0")
    assert status == 0
    assert output == "data_train: 7 documents, 49 tokens\ndata_valid: 3 documents, 21 tokens\n"
    status, output, _ = run(merge, "data_train", "data_valid", "--output-prefix", "again")
    assert status == 0
    assert output.splitlines() == [
        "dataset      again",
        "documents    10 in 10 sequences",
        "tokens       70 as uint16",
    ]
    assert bin_path("again").read_bytes() == bin_path("data").read_bytes()
    status, output, _ = run(verify, "data", "again", "data_valid", "--tokenizer", "t.json")
    assert status == 0
    checked = (
        "checked: sizes and pointers, ids below 257, document ends, markers, checksums, tokenizer"
    )
    assert output.splitlines()[0] == f"data: 10 documents, 70 tokens; {checked}"
    assert [line.endswith(checked) for line in output.splitlines()] == [True] * 3


def test_a_share_without_documents_is_said(run):
    status, output, message = run(split, "data", "--shares", "1,0", "--output-prefix", "p")
    assert (status, output) == (0, "p_train: 10 documents, 70 tokens\n")
    assert message == "p_valid: no document falls to it\n"


def test_a_damaged_dataset_is_found_and_the_others_are_looked_at_all_the_same(run, folder):
    with IndexedDatasetWriter(folder / "plain", np.uint16) as writer:
        writer.add_document([300])
    content = bytearray(bin_path("data").read_bytes())
    content[-1] ^= 1
    bin_path("data").write_bytes(content)
    status, output, message = run(verify, "absent", "data", "plain")
    assert status == 2
    assert output == "plain: 1 documents, 1 tokens; checked: sizes and pointers, ids not negative\n"
    lines = message.splitlines()
    assert "absent.idx: no such file" in lines[0]
    assert any("data.bin: damaged between bytes 0 and 140" in line for line in lines)
    assert any("do not end with id 0" in line for line in lines)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (merge, ["absent", "--output-prefix", "x"], "absent.idx: no such file"),
        (merge, ["data", "--output-prefix", "data"], "data: is an input as well"),
        (split, ["absent", "--shares", "1"], "absent.idx: no such file"),
        (split, ["data", "--shares", "a,b"], "must be numbers such as 969,30,1, got 'a,b'"),
        (split, ["data", "--shares", "0,0"], "must be numbers such as"),
        (split, ["data", "--shares=-1,2"], "must be numbers such as"),
        (split, ["data", "--shares", "1,1,1,1"], "4 parts, but --names names 'train,"),
        (split, ["data", "--shares", "1,1", "--names", "a,a"], "--names names 'a,a'"),
        (split, ["data", "--shares", "1,1", "--names", "a/b,c"], "no slash, got 'a/b,c'"),
        (verify, ["data", "--vocab-size", "0"], "is outside the vocabulary of 0"),
        (verify, ["data", "--tokenizer", "no.json"], "no.json: no such tokenizer"),
    ],
)
def test_mistakes_give_one_message_and_status_2(run, tool, arguments, message):
    status, _, printed = run(tool, *arguments)
    assert status == 2
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert IndexedDataset("data").num_documents == 10


@pytest.mark.parametrize(
    ("tool", "arguments", "step"),
    [
        (merge, ["data", "--output-prefix", "x"], "merge"),
        (split, ["data", "--shares", "1"], "write_pieces"),
        (inspect, ["data"], "token_counts"),
        (verify, ["data"], "all_problems"),
    ],
)
def test_an_interruption_is_one_line_and_status_130(run, monkeypatch, tool, arguments, step):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, step, interrupt)
    status, _, printed = run(tool, *arguments)
    assert status == 130
    assert printed.startswith("interrupted")
    assert len(printed.splitlines()) == 1


def test_a_system_s_error_is_said_without_its_number(run):
    for tool, arguments in (
        (merge, ["data", "--output-prefix", "t.json/x"]),
        (split, ["data", "--shares", "1", "--output-prefix", "t.json/x"]),
        (preprocess, ["in.jsonl", "--tokenizer", "t.json", "--output-prefix", "t.json/x"]),
    ):
        status, _, printed = run(tool, *arguments)
        assert status == 2
        assert re.fullmatch(r"t\.json/x\S*: Not a directory\n", printed)


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_a_tokenizer_has_one_name_in_all_commands_and_in_a_configuration(run, folder, kind):
    name, text = write_vocabulary(kind, folder / "vocabulary"), "the model learns a list"
    (folder / "one.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 40)
    named = ("--tokenizer", name)
    assert run(preprocess, "one.jsonl", *named, "--output-prefix", "one")[0] == 0
    assert run(verify, "one", *named)[0] == 0
    assert run(inspect, "one", "--document", 0, *named) == (0, f"{text}\n", "")
    data = {"data__train": "one", "data__valid": "one", "data__tokenizer": name}
    config = tiny_config(folder, folder / "run", **data, model__vocab_size=60_000)
    assert list(dataset_problems(config)) == []
    theirs = {"vocab-file": name, "num-layers": 2, "hidden-size": 64, "num-attention-heads": 4}
    (folder / "theirs.yml").write_text(json.dumps({**theirs, "seq-length": 32}))
    _, ours, _ = run(convert, "theirs.yml")
    assert ("vocab_size:" in ours) == (kind != "bytes")  # which no other tool has
