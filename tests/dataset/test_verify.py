"""Whatever is wrong with a dataset is found, and said with its place."""

import numpy as np
import pytest

from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest, write_manifest
from megatron_gptx.dataset.merge_and_split import merge
from megatron_gptx.dataset.mmididx import bin_path
from megatron_gptx.dataset.verify import Expected, all_problems, quick_problems
from megatron_gptx.files import checksums as files_module

VOCABULARY = Expected(vocab_size=100)


@pytest.fixture
def dataset(tmp_path, make_dataset):
    """Make a dataset with checksums whose documents end with 7."""
    source = make_dataset([[1, 7], [2, 3, 7], [7], [99, 7]])
    merged = merge([source.prefix], tmp_path / "merged")
    change_manifest(merged, end_of_document=7, tokenizer={"sha256": "a" * 64})
    return merged


def change_manifest(dataset, **changes):
    path = manifest_path(dataset.prefix)
    write_manifest(path, {**read_manifest(path), **changes})


def problems(dataset, expected=VOCABULARY):
    return list(all_problems(IndexedDataset(dataset.prefix), expected, threads=2))


def test_a_whole_dataset_has_no_problem(dataset):
    assert problems(dataset) == []
    assert problems(dataset, Expected(100, "a" * 64)) == []
    assert quick_problems(dataset, Expected(100, "a" * 64)) == []


def test_an_id_beyond_the_vocabulary_is_found(dataset):
    for found in (problems(dataset, Expected(99)), quick_problems(dataset, Expected(99))):
        (problem,) = found
        assert problem.endswith(
            "token id 99 is outside the vocabulary of 99: it was made with another tokenizer"
        )


def test_a_negative_id_is_found(tmp_path, make_dataset):
    (problem,) = problems(make_dataset([[1, -3]], name="n", dtype=np.int32), Expected())
    assert "token id -3 is negative" in problem


def test_another_tokenizer_is_found(dataset):
    for look in (problems, quick_problems):
        (problem,) = look(dataset, Expected(100, "b" * 64))
        assert "made with another tokenizer (sha256 aaaaaaaaaaaa)" in problem


def test_a_changed_byte_is_found_and_its_block_named(dataset, monkeypatch):
    monkeypatch.setattr(files_module, "CHECKSUM_BLOCK", 4)
    monkeypatch.setattr("megatron_gptx.dataset.verify.CHECKSUM_BLOCK", 4)
    path = bin_path(dataset.prefix)
    change_manifest(dataset, checksums={"bin": files_module.checksums(path)})
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)
    assert problems(dataset) == [f"{path}: damaged between bytes 4 and 8"]


def test_a_document_without_its_end_is_found(dataset):
    change_manifest(dataset, end_of_document=99, checksums=None)
    (problem,) = problems(dataset)
    assert problem.endswith("4 document(s), such as number 0, do not end with id 99")


def test_ends_are_looked_for_across_chunks_and_in_empty_documents(
    tmp_path, make_dataset, monkeypatch
):
    monkeypatch.setattr("megatron_gptx.dataset.verify._DOCUMENTS", 2)
    source = make_dataset([[1, 7], [7], [], [2, 7], [3], [7]])
    merged = merge([source.prefix], tmp_path / "merged")
    change_manifest(merged, end_of_document=7)
    (problem,) = problems(merged)
    assert "2 document(s), such as number 2, do not end with id 7" in problem


def test_a_manifest_that_counts_otherwise_is_found(dataset):
    change_manifest(dataset, num_documents=5)
    assert problems(dataset) == [f"{dataset.prefix}: num_documents is 4, its manifest says 5"]
    assert problems(dataset, Expected()) != []
