"""Datasets of Megatron-LM and GPT-NeoX are read as they are, and ours by them.

Megatron-LM's part is Megatron-LM's own reader, writer and merger, from its package. GPT-NeoX is in
no package index and would have to be copied, so what its reader and writer do is written down here
anew, after reading its megatron/data/indexed_dataset.py: these tests show that the bytes agree with
that description, not that its program runs.
"""

import importlib.util
import json
import struct
import subprocess
import sys
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.writer import IndexedDatasetWriter

# Documents of sequences: an empty one, one of several sequences, an empty sequence.
DOCUMENTS = [[[1, 2, 3]], [], [[4], [5, 6]], [[7, 8, 9, 10]], [[]], [[11, 255]]]
DTYPES = ["uint8", "int16", "uint16", "int32", "int64"]

# Run by a Python of its own: importing all of Megatron-LM takes seconds and changes warnings.
MEGATRON = """
import json, sys
import numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

folder, documents = sys.argv[1], json.loads(sys.argv[2])
read = {}
for dtype in sys.argv[3:]:
    dataset = IndexedDataset(f"{folder}/ours-{dtype}")
    read[dtype] = {
        "dtype": numpy.dtype(dataset.index.dtype).name,
        "sequences": [dataset[i].tolist() for i in range(len(dataset))],
        "documents": dataset.document_indices.tolist(),
        "piece": dataset.get(3, offset=1, length=2).tolist(),
    }
    prefix = f"{folder}/theirs-{dtype}"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.dtype(dtype).type)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    # As their merge_datasets.py joins files: ours and theirs.
    builder = IndexedDatasetBuilder(f"{folder}/merged-{dtype}.bin", dtype=numpy.dtype(dtype).type)
    builder.add_index(f"{folder}/ours-{dtype}")
    builder.add_index(prefix)
    builder.finalize(f"{folder}/merged-{dtype}.idx")
print(json.dumps(read))
"""


def write_ours(folder, name, dtype):
    with IndexedDatasetWriter(folder / name, np.dtype(dtype)) as writer:
        for document in DOCUMENTS:
            ids = [number for sequence in document for number in sequence]
            writer.add_document(ids, sequence_lengths=[len(sequence) for sequence in document])


def flat(documents):
    return [[number for sequence in document for number in sequence] for document in documents]


def read_documents(prefix):
    dataset = IndexedDataset(prefix)
    return [dataset.document(i).tolist() for i in range(dataset.num_documents)]


@pytest.fixture(scope="module")
def megatron(tmp_path_factory):
    """Let Megatron-LM's own code read our files and write its own; return what it read."""
    if importlib.util.find_spec("megatron") is None:
        pytest.skip("Megatron-LM's reader is not here: pip install megatron-core")
    folder = tmp_path_factory.mktemp("megatron")
    for dtype in DTYPES:
        write_ours(folder, f"ours-{dtype}", dtype)
    done = subprocess.run(
        [sys.executable, "-c", MEGATRON, folder, json.dumps(DOCUMENTS), *DTYPES],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_megatron_reads_our_datasets(megatron, dtype):
    read = megatron[1][dtype]
    assert read["dtype"] == dtype
    assert read["sequences"] == [sequence for document in DOCUMENTS for sequence in document]
    assert read["documents"] == [0, 1, 1, 3, 4, 5, 6]
    assert read["piece"] == [8, 9]


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_datasets_that_megatron_writes_and_merges(megatron, dtype):
    folder, _ = megatron
    assert read_documents(folder / f"theirs-{dtype}") == flat(DOCUMENTS)
    assert read_documents(folder / f"merged-{dtype}") == 2 * flat(DOCUMENTS)
    for suffix in ("bin", "idx"):
        ours, theirs = (folder / f"{who}-{dtype}.{suffix}" for who in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()


class NeoX(NamedTuple):
    """What GPT-NeoX's MMapIndexedDataset makes of two files."""

    dtype: np.dtype
    sizes: np.ndarray
    documents: np.ndarray
    sequences: list[np.ndarray]


NEOX_DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}


def read_as_neox(prefix) -> NeoX:
    """Read two files step by step as GPT-NeoX's reader does; this is not its code."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<Q", index[9:17]) == (1,)
    dtype = np.dtype(NEOX_DTYPES[index[17]])
    length, num_documents = struct.unpack("<QQ", index[18:34])
    sizes = np.frombuffer(index, np.int32, length, 34)
    pointers = np.frombuffer(index, np.int64, length, 34 + sizes.nbytes)
    documents = np.frombuffer(index, np.int64, num_documents, 34 + sizes.nbytes + pointers.nbytes)
    # Its GPT2Dataset asserts this before anything else.
    assert sizes.shape[0] == documents[-1]
    tokens = prefix.with_suffix(".bin").read_bytes()
    sequences = [
        np.frombuffer(tokens, dtype, size, pointer)
        for pointer, size in zip(pointers.tolist(), sizes.tolist(), strict=True)
    ]
    return NeoX(dtype, sizes, documents, sequences)


def write_as_neox(prefix, dtype, documents):
    """Write the bytes that GPT-NeoX's MMapIndexedDatasetBuilder writes."""
    code = {np.dtype(name): code for code, name in NEOX_DTYPES.items()}[np.dtype(dtype)]
    sequences = [sequence for document in documents for sequence in document]
    starts = np.cumsum([0, *(len(document) for document in documents)])
    arrays = [np.array(sequence, dtype) for sequence in sequences]
    pointers = np.cumsum([0, *(array.nbytes for array in arrays)])[:-1]
    prefix.with_suffix(".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", code)
        + struct.pack("<QQ", len(sequences), len(starts))
        + b"".join(struct.pack("<i", len(sequence)) for sequence in sequences)
        + b"".join(struct.pack("<q", pointer) for pointer in pointers.tolist())
        + b"".join(struct.pack("<q", start) for start in starts.tolist())
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_neox_reads_our_datasets(tmp_path, dtype):
    write_ours(tmp_path, "ours", dtype)
    read = read_as_neox(tmp_path / "ours")
    assert read.dtype == np.dtype(dtype)
    found = [
        [sequence.tolist() for sequence in read.sequences[first:last]]
        for first, last in pairwise(read.documents.tolist())
    ]
    assert found == DOCUMENTS


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_datasets_that_neox_writes(tmp_path, dtype):
    write_as_neox(tmp_path / "theirs", dtype, DOCUMENTS)
    assert read_documents(tmp_path / "theirs") == flat(DOCUMENTS)
    write_ours(tmp_path, "ours", dtype)
    for suffix in ("bin", "idx"):
        ours, theirs = (tmp_path / f"{who}.{suffix}" for who in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_their_datasets_train_as_they_are(tmp_path):
    write_as_neox(tmp_path / "theirs", "uint16", [[[*range(10), 99]], [[*range(20, 25)], [99]]])
    samples = GPTDataset(
        IndexedDataset(tmp_path / "theirs"), 8, seed=0, shaping=Shaping("document")
    )
    tokens, _, _ = samples.read_samples(range(samples.samples_per_epoch))
    assert sorted(tokens[:, 0].tolist()) == [0, 8, 20]
