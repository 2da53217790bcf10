"""The file format, byte by byte, and every way it can be damaged."""

import errno
import multiprocessing
import os
import pickle
import struct

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.mmididx import DTYPES, bin_path, idx_path, token_dtype
from megatron_gptx.dataset.writer import IndexedDatasetWriter


def assemble(prefix, code, form, sequences, starts, *, modes=b"", pointers=None):
    """Write a dataset byte by byte, from the format's description and not from our writer."""
    size = struct.calcsize(form)
    lengths = [len(ids) for ids in sequences]
    if pointers is None:
        pointers = [size * sum(lengths[:i]) for i in range(len(lengths))]
    index = b"MMIDIDX\x00\x00"
    index += struct.pack("<Q", 1) + struct.pack("<B", code)
    index += struct.pack("<Q", len(lengths)) + struct.pack("<Q", len(starts))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(starts)}q", *starts) + modes
    tokens = b"".join(struct.pack(f"<{len(ids)}{form}", *ids) for ids in sequences)
    idx_path(prefix).write_bytes(index)
    bin_path(prefix).write_bytes(tokens)
    return index, tokens


# Three documents: two sequences, none, one.
SEQUENCES, STARTS = [[5, 6, 7], [8], [], [9, 10]], [0, 2, 3, 4]


@pytest.fixture
def prefix(tmp_path):
    assemble(tmp_path / "by.hand", 8, "H", SEQUENCES, STARTS)
    return tmp_path / "by.hand"


@pytest.mark.parametrize(
    ("code", "form"), [(1, "B"), (2, "b"), (3, "h"), (4, "i"), (5, "q"), (8, "H")]
)
def test_a_file_assembled_by_hand_is_read_and_our_writer_gives_the_same_bytes(tmp_path, code, form):
    index, tokens = assemble(tmp_path / "hand", code, form, SEQUENCES, STARTS)
    dataset = IndexedDataset(tmp_path / "hand")
    assert dataset.dtype == DTYPES[code]
    assert [dataset.document(i).tolist() for i in range(3)] == [[5, 6, 7, 8], [], [9, 10]]
    assert (dataset.num_sequences, dataset.num_documents, dataset.num_tokens) == (4, 3, 6)
    assert dataset.document_lengths(0, 3).tolist() == [4, 0, 2]
    assert dataset.document_lengths(1, 3).tolist() == [0, 2]
    assert [dataset.token_offset(i) for i in range(4)] == [0, 4, 4, 6]
    assert dataset.read(2, 5).tolist() == [7, 8, 9]

    with IndexedDatasetWriter(tmp_path / "ours", DTYPES[code]) as writer:
        writer.add_document([5, 6, 7, 8], sequence_lengths=[3, 1])
        writer.add_document([])
        writer.add_document([9, 10])
    assert idx_path(tmp_path / "ours").read_bytes() == index
    assert bin_path(tmp_path / "ours").read_bytes() == tokens


def test_the_modes_at_the_end_of_multimodal_files_are_tolerated(tmp_path):
    assemble(tmp_path / "modes", 4, "i", SEQUENCES, STARTS, modes=b"\x00" * 4)
    assert IndexedDataset(tmp_path / "modes").document(2).tolist() == [9, 10]


def test_sequences_with_gaps_between_them_are_read_as_one_stream(tmp_path):
    prefix = tmp_path / "gaps"
    assemble(prefix, 8, "H", [[1, 2], [0, 0], [3], [4]], [0, 1, 2, 3, 4])
    assemble(tmp_path / "index", 8, "H", [[1, 2], [3], [4]], [0, 1, 2, 3], pointers=[0, 8, 10])
    idx_path(prefix).write_bytes(idx_path(tmp_path / "index").read_bytes())
    dataset = IndexedDataset(prefix)
    assert (dataset.num_tokens, dataset.read(0, 4).tolist()) == (4, [1, 2, 3, 4])
    assert dataset.read(1, 3).tolist() == [2, 3]
    assert dataset.read(2, 2).tolist() == []
    assert [dataset.document(i).tolist() for i in range(3)] == [[1, 2], [3], [4]]


def test_an_empty_dataset_is_read(make_dataset):
    dataset = make_dataset([])
    assert (dataset.num_documents, dataset.num_tokens) == (0, 0)
    assert dataset.read(0, 0).tolist() == []


def cut(path, num_bytes):
    os.truncate(path, path.stat().st_size - num_bytes)


def patch(path, at, content):
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: bin_path(p).unlink(), r"by\.hand\.bin: no such file"),
        (lambda p: idx_path(p).unlink(), r"by\.hand\.idx: no such file"),
        (lambda p: cut(bin_path(p), 2), r"by\.hand\.bin: truncated: 10 bytes, .* describes 12"),
        (lambda p: bin_path(p).write_bytes(b"x" * 14), r"too long: 14 bytes, .* describes 12"),
        (lambda p: cut(idx_path(p), 1), r"by\.hand\.idx: truncated: 113 bytes, .* take 114"),
        (lambda p: idx_path(p).write_bytes(b"short"), "truncated: 5 bytes, the header"),
        (lambda p: idx_path(p).write_bytes(b""), "truncated: 0 bytes, the header"),
        (lambda p: patch(idx_path(p), 0, b"TNTIDX"), "not an MMIDIDX index: it begins with"),
        (lambda p: patch(idx_path(p), 9, b"\x02"), "MMIDIDX version 2; only version 1"),
        (lambda p: patch(idx_path(p), 17, b"\x06"), r"dtype code 6 is none of .*\[1, 2, 3"),
        (lambda p: patch(idx_path(p), 18, b"\xff" * 8), "truncated: 114 bytes"),
        (lambda p: patch(idx_path(p), 26, b"\x00" * 8), "its document index is empty"),
        (lambda p: patch(idx_path(p), 34, b"\x09"), "damaged: sequence 1 has 1 tokens from byte 6"),
        (lambda p: patch(idx_path(p), 37, b"\xff"), "damaged: sequence 0 has -"),
        (lambda p: patch(idx_path(p), 58, b"\x07"), "not a multiple of 2"),
        (lambda p: patch(idx_path(p), 106, b"\x03"), "runs from 0 to 3 instead of from 0 to its 4"),
        (lambda p: patch(idx_path(p), 90, b"\x04"), "document 1 ends before it begins"),
    ],
)
def test_damage_is_reported_with_file_and_values(prefix, damage, message):
    damage(prefix)
    with pytest.raises(UserError, match=message):
        IndexedDataset(prefix)


def test_a_prefix_given_with_its_ending_is_explained(prefix):
    with pytest.raises(UserError, match=r"give the prefix without '\.bin'"):
        IndexedDataset(f"{prefix}.bin")


def test_a_failing_writer_leaves_nothing_behind(tmp_path):
    def fail():
        with IndexedDatasetWriter(tmp_path / "x", np.uint16) as writer:
            writer.add_document([1, 2, 3])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_cannot_finish_leaves_the_old_dataset(tmp_path, make_dataset, monkeypatch):
    make_dataset([[1, 2]])
    writer = IndexedDatasetWriter(tmp_path / "tokens", np.uint16)
    writer.add_document([3])

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write_index", fail)
    with pytest.raises(OSError, match="No space"):
        writer.finalize()
    assert IndexedDataset(tmp_path / "tokens").document(0).tolist() == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_index_is_the_last_to_appear(tmp_path, make_dataset, monkeypatch):
    make_dataset([[1, 2]])
    moved = []
    replace = type(tmp_path).replace

    def watch(source, target):
        moved.append((target.suffix, idx_path(tmp_path / "tokens").exists()))
        return replace(source, target)

    monkeypatch.setattr(type(tmp_path), "replace", watch)
    make_dataset([[3]])
    assert moved == [(".bin", False), (".idx", False)]


def test_ids_that_do_not_fit_are_refused(tmp_path):
    writer = IndexedDatasetWriter(tmp_path / "x", np.uint16)
    with pytest.raises(UserError, match="token ids 3 to 65536 do not fit into uint16"):
        writer.add_document([3, 65536])
    with pytest.raises(UserError, match="token ids -1 to 3"):
        writer.add_document([3, -1])
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_parts_are_appended_as_documents(tmp_path):
    part = tmp_path / "part"
    part.write_bytes(struct.pack("<4H", 1, 2, 3, 4))
    with IndexedDatasetWriter(tmp_path / "x", np.uint16) as writer:
        writer.add_document([9])
        writer.append_file(part, np.array([1, 3]))
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset.document(i).tolist() for i in range(3)] == [[9], [1], [2, 3, 4]]


@pytest.fixture
def grown(tmp_path):
    """Write two documents, save, then a third that is not saved; leave the files."""
    folder = tmp_path / "aside"
    folder.mkdir()
    writer = IndexedDatasetWriter(tmp_path / "x", np.uint16, folder=folder)
    writer.add_document([1, 2, 3], sequence_lengths=[1, 2])
    writer.add_document([])
    writer.save()
    extent = writer.extent
    writer.add_document([4, 5])
    writer.close()
    return folder, extent


def test_a_writer_resumes_where_another_one_saved(tmp_path, grown):
    folder, extent = grown
    assert extent == (3, 3, 2)
    with IndexedDatasetWriter(tmp_path / "x", np.uint16, folder=folder, resume_at=extent) as writer:
        writer.add_document([6])
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset.document(i).tolist() for i in range(3)] == [[1, 2, 3], [], [6]]
    assert dataset.lengths.tolist() == [1, 2, 0, 1]
    assert list(folder.iterdir()) == []


def test_a_writer_does_not_resume_what_is_gone(tmp_path, grown):
    folder, extent = grown
    os.truncate(folder / "dataset.bin", 5)
    with pytest.raises(UserError, match=r"dataset\.bin: 5 bytes are left of the 6"):
        IndexedDatasetWriter(tmp_path / "x", np.uint16, folder=folder, resume_at=extent)


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.ENOSYS])
def test_a_part_of_a_file_is_appended_whether_or_not_the_kernel_copies(
    tmp_path, monkeypatch, refusal
):
    def refuse(*_):
        raise OSError(refusal, "refused")

    if refusal:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    part = tmp_path / "part"
    part.write_bytes(struct.pack("<5H", *range(5)))
    with IndexedDatasetWriter(tmp_path / "x", np.uint16) as writer:
        writer.append_file(part, np.array([1, 2]), sequences=np.array([2]), first_byte=4)
        writer.add_document([9])
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset.document(i).tolist() for i in range(2)] == [[2, 3, 4], [9]]


def test_a_full_disk_while_the_kernel_copies_is_an_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", fail)
    (tmp_path / "part").write_bytes(b"ab")
    writer = IndexedDatasetWriter(tmp_path / "x", np.uint16)
    with pytest.raises(OSError, match="No space left"):
        writer.append_file(tmp_path / "part", np.array([1]))
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_document_too_long_for_int32_becomes_several_sequences(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_gptx.dataset.writer._LONGEST_SEQUENCE", 3)
    part = tmp_path / "part"
    part.write_bytes(struct.pack("<8H", *range(8)))
    with IndexedDatasetWriter(tmp_path / "x", np.uint16) as writer:
        writer.add_document(range(7))
        writer.append_file(part, np.array([6, 2]))
    dataset = IndexedDataset(tmp_path / "x")
    assert dataset.lengths.tolist() == [3, 3, 1, 3, 3, 2]
    assert [dataset.document(i).size for i in range(3)] == [7, 6, 2]


def test_a_vocabulary_of_65536_needs_int32():
    assert token_dtype(65535) == np.uint16
    assert token_dtype(65536) == np.int32


def test_checks_in_chunks_find_what_lies_between_two_chunks(tmp_path, monkeypatch):
    for module in ("writer", "mmididx"):
        monkeypatch.setattr(f"megatron_gptx.dataset.{module}._CHUNK", 2)
    sequences = [[i] * (i % 3) for i in range(9)]
    assemble(tmp_path / "ok", 8, "H", sequences, list(range(10)))
    dataset = IndexedDataset(tmp_path / "ok")
    assert [dataset.document(i).tolist() for i in range(9)] == sequences
    with IndexedDatasetWriter(tmp_path / "ours", np.uint16) as writer:
        for ids in sequences:
            writer.add_document(ids)
    assert idx_path(tmp_path / "ours").read_bytes() == idx_path(tmp_path / "ok").read_bytes()
    pointers = dataset.pointers.tolist()
    pointers[4] -= 2  # the first of a chunk overlaps the last of the one before
    assemble(tmp_path / "ok", 8, "H", sequences, list(range(10)), pointers=pointers)
    with pytest.raises(UserError, match="sequence 4"):
        IndexedDataset(tmp_path / "ok")


def _send_document(dataset, pipe):
    pipe.send(dataset.document(0).tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_object(prefix, method):
    dataset = IndexedDataset(prefix)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_document, args=(dataset, theirs))
    process.start()
    assert ours.poll(30)
    assert ours.recv() == [5, 6, 7, 8]
    process.join()


def test_it_pickles_as_its_prefix(prefix):
    assert len(pickle.dumps(IndexedDataset(prefix))) < 500
