"""Samples for next-token prediction, cut from the stream of documents."""

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.indexed_dataset import IndexedDataset
from megatron_gptx.data.order import Permutation
from megatron_gptx.distributed.seeds import derive_seed

_BLOCK = 256  # places in the order computed at once, which costs a tenth of one after the other


class GPTDataset:
    """Windows of seq_length + 1 tokens over documents in a row, in an order of their own per epoch.

    The documents [first_document, last_document) stand in file order as one stream, closed to a
    ring. An epoch cuts the ring at a pseudo-random token into consecutive windows that share one
    token, so that every token is predicted from the one before it.

    What is shuffled: the order of the windows, and where the ring is cut; both are new in every
    epoch. What is not: the documents inside the stream. A window's neighbours in the file are
    always the same, so a corpus sorted by topic should be shuffled before it is preprocessed.

    What an epoch shows: each token exactly once as an input, except for fewer than seq_length + 1
    just before the cut, which fill no window; they are others in every epoch.

    With `shuffle=False` each epoch is the windows from the first token on, in file order.

    A position is all the state there is: the sample at a position depends on nothing that was read
    before, and no table of samples is built.

    Args:
        dataset: the token files.
        seq_length: inputs per sample.
        seed: with the epoch, decides order and cut.
        first_document: first document of the range.
        last_document: end of the range, not included; null means all.
        shuffle: whether windows are shuffled.

    Raises:
        UserError: the range has too few tokens for one window.
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
    ) -> None:
        last = dataset.num_documents if last_document is None else last_document
        assert 0 <= first_document <= last <= dataset.num_documents, (first_document, last)
        assert seq_length > 0, seq_length
        self.source, self.seq_length, self.seed, self.shuffle = dataset, seq_length, seed, shuffle
        self.documents = range(first_document, last)
        self._start = dataset.token_offset(first_document)
        self.num_tokens = dataset.token_offset(last) - self._start
        self.samples_per_epoch = (self.num_tokens - 1) // seq_length
        if self.samples_per_epoch < 1:
            raise UserError(
                f"{dataset.prefix}: documents {first_document} to {last} have {self.num_tokens} "
                f"tokens, but one sample takes seq_length + 1 = {seq_length + 1}; use a shorter "
                "seq_length, another split or more data"
            )
        self._windows = dataset.windows(seq_length + 1)
        # The last block of starts, replaced as a whole: threads may share this object.
        self._block: tuple[tuple[int, int], npt.NDArray[np.int64]] = ((-1, -1), np.empty(0, int))

    def __getitem__(self, position: int) -> npt.NDArray[np.int64]:
        """Return (seq_length + 1,) token ids of the sample at a position, counted over epochs."""
        return self.read_samples(position, 1)[0]

    def read_samples(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """Return (count, seq_length + 1) token ids of consecutive positions."""
        assert position >= 0, position
        samples = np.empty((count, self.seq_length + 1), np.int64)
        row = 0
        while row < count:
            epoch, index = divmod(position + row, self.samples_per_epoch)
            at = index % _BLOCK
            starts = self._starts(epoch, index // _BLOCK)[at : at + count - row]
            self._fill(samples[row : row + starts.size], starts)
            row += starts.size
        return samples

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Return tokens [start, stop) of the range's stream, as the file's own dtype."""
        return self.source.read(self._start + start, self._start + stop)

    def _starts(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        """Return the first token of each window in the given block of an epoch."""
        known, starts = self._block
        if known == (epoch, block):
            return starts
        last = min((block + 1) * _BLOCK, self.samples_per_epoch)
        windows, cut = np.arange(block * _BLOCK, last), 0
        if self.shuffle:
            key = derive_seed(self.seed, "data order", epoch)
            windows = Permutation(self.samples_per_epoch, key).many(windows)
            cut = derive_seed(self.seed, "data cut", epoch) % self.num_tokens
        starts = (cut + windows * self.seq_length) % self.num_tokens
        self._block = ((epoch, block), starts)
        return starts

    def _fill(self, samples: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> None:
        length = self.seq_length + 1
        if self._windows is not None and starts.max() + length <= self.num_tokens:
            samples[:] = self._windows[self._start + starts]
            return
        for sample, start in zip(samples, starts.tolist(), strict=True):
            head = min(length, self.num_tokens - start)
            sample[:head] = self.read(start, start + head)
            # The rest lies across the ring's seam, where the last document meets the first.
            sample[head:] = self.read(0, length - head)
