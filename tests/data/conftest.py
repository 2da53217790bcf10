"""Small datasets and tokenizers, written for one test."""

import signal

import numpy as np
import pytest

from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.tokenizer.train import train_byte_level_bpe


@pytest.fixture
def make_dataset(tmp_path):
    """Write documents given as lists of ids, and open them."""

    def make(documents, *, name="tokens", dtype=np.uint16):
        prefix = tmp_path / name
        with IndexedDatasetWriter(prefix, dtype) as writer:
            for document in documents:
                writer.add_document(document)
        return IndexedDataset(prefix)

    return make


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """Make a tokenizer.json of bytes, a few merges and an end of document."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["the cat sat on the mat " * 20], vocab_size=270))
    return path


@pytest.fixture
def clock():
    """Fail a test that hangs."""

    def fail(*_):
        raise TimeoutError("this case hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
