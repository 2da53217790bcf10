"""Merged and divided datasets hold the very same documents."""

import fcntl
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.build import split_documents
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest
from megatron_gptx.dataset.merge_and_split import Piece, merge, write_pieces
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.dataset.verify import Expected, all_problems
from megatron_gptx.dataset.writer import IndexedDatasetWriter, folder_of


def add_manifest(dataset, *, sha256="a" * 64, end=None, max_id=9):
    manifest_path(dataset.prefix).parent.mkdir()
    content = {
        "num_tokens": dataset.num_tokens,
        "max_id": max_id,
        "tokenizer": {"sha256": sha256, "vocab_size": 10},
        "end_of_document": end,
    }
    manifest_path(dataset.prefix).write_text(json.dumps(content))


def documents(dataset):
    return [dataset.document(i).tolist() for i in range(dataset.num_documents)]


def test_a_merged_dataset_has_the_bytes_that_the_format_asks_for(tmp_path, make_dataset):
    with IndexedDatasetWriter(tmp_path / "first", np.uint16) as writer:
        writer.add_document([5, 6, 7], sequence_lengths=[2, 1])
        writer.add_document([])
    make_dataset([[8], [9, 10]], name="second")
    merge([tmp_path / "first", tmp_path / "second"], tmp_path / "all")
    lengths, pointers, starts = (2, 1, 0, 1, 2), (0, 4, 6, 6, 8), (0, 2, 3, 4, 5)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 5, 5)
    index += struct.pack("<5i5q5q", *lengths, *pointers, *starts)
    assert idx_path(tmp_path / "all").read_bytes() == index
    assert bin_path(tmp_path / "all").read_bytes() == struct.pack("<6H", *range(5, 11))


def test_merging_widens_ids_and_closes_gaps(tmp_path, make_dataset):
    wide = make_dataset([[70_000], []], name="wide", dtype=np.int32)
    narrow = make_dataset([[1, 2], [3]], name="narrow")
    # The same dataset with two tokens of something else before each sequence.
    tokens = struct.pack("<7H", 0, 0, 1, 2, 0, 0, 3)
    index = idx_path(narrow.prefix).read_bytes()
    bin_path(tmp_path / "gaps").write_bytes(tokens)
    at = 34 + 2 * 4
    pointers = struct.pack("<2q", 4, 12)
    idx_path(tmp_path / "gaps").write_bytes(index[:at] + pointers + index[at + 16 :])
    merged = merge([narrow.prefix, wide.prefix, tmp_path / "gaps"], tmp_path / "all")
    assert merged.dtype == np.int32
    assert merged.contiguous
    assert documents(merged) == [[1, 2], [3], [70_000], [], [1, 2], [3]]
    manifest = read_manifest(manifest_path(merged.prefix))
    assert (manifest["min_id"], manifest["max_id"]) == (1, 70_000)
    assert manifest["tokenizer"] is None
    assert list(all_problems(merged, Expected())) == []


def test_a_merge_in_pieces_is_the_same(tmp_path, make_dataset, monkeypatch):
    first = make_dataset([[i] * (i % 4) for i in range(50)], name="first")
    second = make_dataset([[i] for i in range(9)], name="second")
    whole = merge([first.prefix, second.prefix], tmp_path / "whole")
    monkeypatch.setattr("megatron_gptx.dataset.merge_and_split._DOCUMENTS", 7)
    monkeypatch.setattr("megatron_gptx.dataset.merge_and_split._TOKENS", 5)
    merge([first.prefix, second.prefix], tmp_path / "pieces")
    for path in (bin_path, idx_path):
        assert path(tmp_path / "pieces").read_bytes() == path(whole.prefix).read_bytes()


@pytest.mark.parametrize("other_end", [4, None])
def test_a_common_tokenizer_is_carried_over(tmp_path, make_dataset, other_end):
    first, second = make_dataset([[1, 4]], name="a"), make_dataset([[2, 4]], name="b")
    add_manifest(first, end=4)
    add_manifest(second, end=other_end)
    merge([first.prefix, second.prefix], tmp_path / "all")
    manifest = read_manifest(manifest_path(tmp_path / "all"))
    assert manifest["tokenizer"] == {"sha256": "a" * 64, "vocab_size": 10}
    assert manifest["end_of_document"] == other_end
    assert manifest["made_by"]["sources"] == [str(first.prefix), str(second.prefix)]


def test_what_does_not_belong_together_is_not_merged(tmp_path, make_dataset):
    first, second = make_dataset([[1]], name="a"), make_dataset([[2]], name="b")
    add_manifest(first)
    add_manifest(second, sha256="b" * 64)
    with pytest.raises(UserError, match="made with different tokenizers"):
        merge([first.prefix, second.prefix], tmp_path / "all")
    with pytest.raises(UserError, match="is an input as well"):
        merge([first.prefix], first.prefix)
    with pytest.raises(UserError, match="a dataset is there"):
        merge([first.prefix], second.prefix)
    assert documents(IndexedDataset(second.prefix)) == [[2]]
    merge([first.prefix], second.prefix, overwrite=True)
    assert documents(IndexedDataset(second.prefix)) == [[1]]


def test_a_failure_leaves_nothing(tmp_path, make_dataset, monkeypatch):
    first = make_dataset([[1]], name="a")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexedDatasetWriter, "append_file", fail)
    with pytest.raises(OSError, match="No space"):
        merge([first.prefix], tmp_path / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_parts_hold_every_document_once(tmp_path, make_dataset):
    source = make_dataset([[i] * (i % 3) for i in range(20)])
    edges = [0, *split_documents("8,1,1", 20)]
    parts = [
        write_pieces([Piece(source, first, last)], tmp_path / f"part{first}", {})
        for first, last in pairwise(edges)
    ]
    assert [part.num_documents for part in parts] == [16, 2, 2]
    assert [each for part in parts for each in documents(part)] == documents(source)
    with pytest.raises(UserError, match="no document is left for it"):
        write_pieces([Piece(source, 3, 3)], tmp_path / "none", {})
    assert not list(tmp_path.glob("none*"))


def test_a_folder_that_another_run_removes_as_it_ends_is_made_again(tmp_path, monkeypatch):
    lock, calls = fcntl.flock, []

    def lock_after_removal(handle, how):
        if not calls:
            (tmp_path / "x.d").rmdir()
        calls.append(how)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock_after_removal)
    with folder_of(tmp_path / "x") as folder:
        (folder / "file").touch()
        with pytest.raises(UserError, match="another run"), folder_of(tmp_path / "x"):
            pass
    assert len(calls) == 3
    assert (tmp_path / "x.d" / "file").exists()


@pytest.mark.parametrize("prefix", ["", ".", "/", ".."])
def test_a_prefix_without_a_name_is_refused(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="names no file"), folder_of(Path(prefix)):
        pass
    assert not list(tmp_path.iterdir())
