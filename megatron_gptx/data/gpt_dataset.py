"""Samples for next-token prediction, cut from documents in an order of their own per epoch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.data import Packing
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.document_index import DocumentIndex, Integers
from megatron_gptx.data.fill_in_the_middle import FillInTheMiddle
from megatron_gptx.data.packing import (
    DocumentPacker,
    OverflowPacker,
    Packer,
    Pieces,
    StreamPacker,
)
from megatron_gptx.data.page_hints import announce, expect_scattered_reads
from megatron_gptx.data.permutation import Permutation
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.distributed.seeds import derive_seed

_BLOCK = 256  # places in the order computed at once, which costs a tenth of one after the other


class Samples(NamedTuple):
    """Inputs and what is to be predicted from them.

    Attributes:
        tokens: (n, s) int64 ids; behind a piece that is shorter than s, 0.
        labels: (n, s) int64, the id that follows each token, or IGNORE where none is to be learned.
        row_start: (n, s) int32, the first token of each one's document; None where documents may
            attend to those before them.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    row_start: npt.NDArray[np.int32] | None


class Shaping(NamedTuple):
    """What becomes of the documents on their way into samples.

    Attributes:
        packing: which of data/packing.py's rules cuts them.
        isolate_documents: no attention and no loss crosses from one document to the next.
        mask_document_ends: no loss for predicting a document's first token from the one before it.
        fill_in_the_middle: rearranges some documents; None leaves all as they are.
    """

    packing: Packing = "stream"
    isolate_documents: bool = False
    mask_document_ends: bool = False
    fill_in_the_middle: FillInTheMiddle | None = None


class GPTDataset:
    """Samples of the documents [first_document, last_document), by position over all epochs.

    What is shuffled: the order of the samples, anew in every epoch. With packing `stream` they are
    also cut elsewhere in every epoch; with the others their content is always the same. What is
    not: the documents inside a sample, which are always neighbours in the file.

    With `shuffle=False` each epoch has the samples in file order, from the first token on.

    A position is all the state there is: the sample at a position depends on nothing that was read
    before, and no table of samples is built.

    Args:
        dataset: the token files.
        seq_length: inputs per sample.
        seed: with the epoch, decides the order.
        first_document: first document of the range.
        last_document: end of the range, not included; null means all.
        shuffle: whether the order is shuffled.
        shaping: what becomes of the documents.
        labels: a dataset of the same lengths, whose ids stand for what is to be learned at each
            token; negative ones are not learned.

    Raises:
        UserError: the range has too few tokens for a sample, or the labels are not of its lengths.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        seq_length: int,
        *,
        seed: int,
        first_document: int = 0,
        last_document: int | None = None,
        shuffle: bool = True,
        shaping: Shaping = Shaping(),  # noqa: B008, it is immutable
        labels: IndexedDataset | None = None,
    ) -> None:
        last = dataset.num_documents if last_document is None else last_document
        assert 0 <= first_document <= last <= dataset.num_documents, (first_document, last)
        assert seq_length > 0, seq_length
        self.source, self.seq_length, self.seed, self.shuffle = dataset, seq_length, seed, shuffle
        self.shaping, self.labels = shaping, labels
        self.index = DocumentIndex(dataset, range(first_document, last))
        self.num_tokens = self.index.num_tokens
        self._start = self.index.first_token
        self._packer = self._make_packer()
        self.samples_per_epoch = self._packer.num_samples
        self._windows = dataset.windows(seq_length + 1)
        expect_scattered_reads(dataset.mapping)
        if labels is not None:
            _check_lengths(dataset, labels)
            self._label_windows = labels.windows(seq_length + 1)
            expect_scattered_reads(labels.mapping)
        # The last block of pieces, replaced as a whole: threads may share this object.
        self._block: tuple[tuple[int, int], Pieces] = (
            (-1, -1),
            Pieces(np.empty(0, int), np.empty(0, int)),
        )

    def read_samples(self, positions: npt.ArrayLike) -> Samples:
        """Return the samples at (n,) positions."""
        places = np.asarray(positions, np.int64)
        pieces = self.locate(places)
        ids = self._gather(self.source, self._windows, pieces)
        isolate = self.shaping.isolate_documents and self.shaping.packing != "document"
        masked = isolate or self.shaping.mask_document_ends
        infill = self.shaping.fill_in_the_middle
        rows = columns = np.empty(0, np.int64)
        if masked or infill:
            rows, columns = self._begins(pieces)
        if infill:
            ids = ids.astype(np.int64)  # a sentinel may be too large for the file's own type
            infill.rearrange(ids, rows, columns, pieces.num_inputs + 1, places, seed=self.seed)
        tokens, labels = ids[:, :-1].astype(np.int64), ids[:, 1:].astype(np.int64)
        if self.labels is not None:
            labels = self._gather(self.labels, self._label_windows, pieces)[:, 1:].astype(np.int64)
            labels[labels < 0] = IGNORE
        if masked:
            labels[rows, columns - 1] = IGNORE
        if (pieces.num_inputs < self.seq_length).any():
            labels[np.arange(self.seq_length) >= pieces.num_inputs[:, None]] = IGNORE
        row_start = self._row_start(rows, columns, pieces.num_inputs) if isolate else None
        return Samples(tokens, labels, row_start)

    def locate(self, positions: npt.ArrayLike) -> Pieces:
        """Return where the samples at (n,) positions lie, in tokens of the range."""
        positions = np.asarray(positions, np.int64)
        epochs, samples = np.divmod(positions, self.samples_per_epoch)
        numbers = samples // _BLOCK
        if (epochs == epochs[0]).all() and (numbers == numbers[0]).all():  # as it is most often
            pieces, at = self._block_pieces(int(epochs[0]), int(numbers[0])), samples % _BLOCK
            return Pieces(pieces.starts[at], pieces.num_inputs[at])
        found = Pieces(np.empty_like(positions), np.empty_like(positions))
        for epoch, number in sorted(set(zip(epochs.tolist(), numbers.tolist(), strict=True))):
            here = (epochs == epoch) & (numbers == number)
            at = samples[here] - number * _BLOCK
            for into, of in zip(found, self._block_pieces(epoch, number), strict=True):
                into[here] = of[at]
        return found

    def count_tokens(self, num_samples: int) -> int:
        """Return how many tokens the first samples hold; with packing, their average counts."""
        epochs, rest = divmod(num_samples, self.samples_per_epoch)
        if self.shaping.packing == "stream":
            return epochs * self.num_tokens + rest * self.seq_length
        return epochs * self.num_tokens + rest * self.num_tokens // self.samples_per_epoch

    def prefix_of(self, position: int) -> Path:
        """Return the prefix of the dataset that the sample at a position comes from."""
        return self.source.prefix

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Return tokens [start, stop) of the range, as the file's own dtype."""
        size = self.source.dtype.itemsize
        if self._windows is not None:
            first = np.array([(self._start + start) * size])
            announce(self.source.mapping, first, (stop - start) * size)
        return self.source.read(self._start + start, self._start + stop)

    def _make_packer(self) -> Packer:
        index, packing = self.index, self.shaping.packing
        packer: Packer
        if packing == "stream":
            packer = StreamPacker(
                index.num_tokens, self.seq_length, seed=self.seed, shuffle=self.shuffle
            )
            needed = f"one sample takes seq_length + 1 = {self.seq_length + 1}"
            enough = index.num_tokens > self.seq_length
        else:
            rule = DocumentPacker if packing == "document" else OverflowPacker
            packer = rule(index, self.seq_length)
            needed = f"with packing {packing} one sample takes 2"
            enough = packer.num_samples > 0
        if not enough:
            raise UserError(
                f"{self.source.prefix}: documents {index.documents.start} to "
                f"{index.documents.stop} have {index.num_tokens} tokens, but {needed}; use a "
                "shorter seq_length, another split or more data"
            )
        return packer

    def _block_pieces(self, epoch: int, block: int) -> Pieces:
        known, pieces = self._block
        if known == (epoch, block):
            return pieces
        samples = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, self.samples_per_epoch))
        num_shuffled = self._packer.num_shuffled
        if self.shuffle and samples[0] < num_shuffled:
            key = derive_seed(self.seed, "data order", epoch)
            moving = samples[samples < num_shuffled]
            samples[: moving.size] = Permutation(num_shuffled, key).many(moving)
        pieces = self._packer.pieces(epoch, samples)
        self._block = ((epoch, block), pieces)
        return pieces

    def _gather(
        self, source: IndexedDataset, windows: npt.NDArray[np.integer] | None, pieces: Pieces
    ) -> npt.NDArray[np.integer]:
        """Return (n, seq_length + 1) ids from each piece's start on, 0 behind its last label."""
        length = self.seq_length + 1
        if windows is not None:
            size = source.dtype.itemsize
            announce(source.mapping, (self._start + pieces.starts) * size, length * size)
        inside = pieces.starts + length <= self.num_tokens
        if windows is not None and inside.all():
            ids = windows[self._start + pieces.starts]
        else:
            ids = np.zeros((pieces.starts.size, length), source.dtype)
            for row, start in zip(ids, pieces.starts.tolist(), strict=True):
                head = min(length, self.num_tokens - start)
                row[:head] = source.read(self._start + start, self._start + start + head)
                # The rest lies across the ring's seam, where the last document meets the first.
                rest = min(length - head, self.num_tokens)
                row[head : head + rest] = source.read(self._start, self._start + rest)
        if pieces.num_inputs.min() < self.seq_length:
            ids[np.arange(length) > pieces.num_inputs[:, None]] = 0
        return ids

    def _begins(self, pieces: Pieces) -> tuple[Integers, Integers]:
        """Return (rows, columns) at which a document begins behind a piece's first token.

        The column of the label behind the last input is included.
        """
        starts, stops = pieces.starts, pieces.starts + pieces.num_inputs
        rows, tokens = self.index.inside(starts, np.minimum(stops, self.num_tokens))
        columns = tokens - starts[rows]
        if (over := np.flatnonzero(stops > self.num_tokens)).size:
            # Across the seam tokens are counted from the range's first one again.
            zeros = np.zeros(over.size, np.int64)
            more, tokens = self.index.inside(zeros, stops[over] - self.num_tokens)
            rows = np.concatenate([rows, over[more]])
            columns = np.concatenate([columns, tokens + self.num_tokens - starts[over[more]]])
        return rows, columns

    def _row_start(
        self, rows: Integers, columns: Integers, num_inputs: Integers
    ) -> npt.NDArray[np.int32]:
        begins = np.zeros((num_inputs.size, self.seq_length + 1), np.int32)
        begins[rows, columns] = columns
        # What fills a sample up is a document of its own.
        begins[np.arange(num_inputs.size), num_inputs] = num_inputs
        return np.maximum.accumulate(begins[:, :-1], axis=1)


def _check_lengths(dataset: IndexedDataset, labels: IndexedDataset) -> None:
    same = (
        dataset.num_tokens == labels.num_tokens
        and np.array_equal(dataset.document_starts, labels.document_starts)
        and np.array_equal(dataset.lengths, labels.lengths)
    )
    if not same:
        raise UserError(
            f"{labels.prefix}: not the labels of {dataset.prefix}: it has {labels.num_tokens} "
            f"tokens in {labels.num_documents} documents, not {dataset.num_tokens} in "
            f"{dataset.num_documents} of the same lengths"
        )
