"""How a range of documents is cut into samples: three rules, none of which stores a sample.

A sample is a piece of the documents in a row: `num_inputs` tokens, and the label of the last one,
which is the token that follows. Rules return where pieces begin and how many inputs they have.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megatron_gptx.data.document_index import DocumentIndex, Integers
from megatron_gptx.distributed.seeds import derive_seed

_GROUP = 64  # documents whose samples are counted together: one number is kept per group
_GROUPS_AT_ONCE = 1 << 14


class Pieces(NamedTuple):
    """Where samples lie: (n,) first tokens, and (n,) how many inputs each has."""

    starts: Integers
    num_inputs: Integers


class Packer(Protocol):
    """A rule, applied to one range of documents."""

    num_samples: int
    """Samples of one epoch."""

    num_shuffled: int
    """The first ones of an epoch, whose order is shuffled; the others stay last."""

    def pieces(self, epoch: int, samples: Integers) -> Pieces:
        """Return where samples of an epoch lie; a piece may go on at token 0 behind the last."""
        ...


class StreamPacker:
    """Documents in a row, closed to a ring and cut into pieces of seq_length inputs.

    Every token is an input once per epoch. Where the ring is cut is new in every epoch; the piece
    before the cut, which may be shorter than the others, stays the epoch's last.
    """

    def __init__(self, num_tokens: int, seq_length: int, *, seed: int, shuffle: bool) -> None:
        self.num_tokens, self.seq_length = num_tokens, seq_length
        self.seed, self.shuffle = seed, shuffle
        self.num_samples = -(-num_tokens // seq_length)
        self.num_shuffled = self.num_samples - 1

    def pieces(self, epoch: int, samples: Integers) -> Pieces:
        """Return where samples of an epoch lie."""
        cut = derive_seed(self.seed, "data cut", epoch) % self.num_tokens if self.shuffle else 0
        offsets = samples * self.seq_length
        num_inputs = np.minimum(self.num_tokens - offsets, self.seq_length)
        return Pieces((cut + offsets) % self.num_tokens, num_inputs)


class _GroupedPacker:
    """Samples that never reach from one group of documents into the next.

    Keeps a number per group. Counting reads every document's length once.
    """

    def __init__(self, index: DocumentIndex, seq_length: int) -> None:
        self.index, self.seq_length = index, seq_length
        num_groups = -(-index.num_documents // _GROUP)
        counts = [
            self._count(self._boundaries(np.arange(at, min(at + _GROUPS_AT_ONCE, num_groups))))
            for at in range(0, num_groups, _GROUPS_AT_ONCE)
        ]
        self._ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))
        self.num_samples = self.num_shuffled = int(self._ends[-1]) if self._ends.size else 0

    def pieces(self, epoch: int, samples: Integers) -> Pieces:
        """Return where samples lie, which is the same in every epoch."""
        groups = np.searchsorted(self._ends, samples, side="right")
        ranks = samples - np.where(groups > 0, self._ends[groups - 1], 0)
        return self._find(self._boundaries(groups), ranks)

    def _boundaries(self, groups: Integers) -> Integers:
        """Return (n, group + 1) boundaries, a smaller last group filled up with its end."""
        numbers = groups[:, None] * _GROUP + np.arange(_GROUP + 1)
        return self.index.boundaries(np.minimum(numbers, self.index.num_documents))

    def _count(self, boundaries: Integers) -> Integers:
        """Return how many samples each group has."""
        raise NotImplementedError

    def _find(self, boundaries: Integers, ranks: Integers) -> Pieces:
        """Return where sample number `rank` of each group lies."""
        raise NotImplementedError


class DocumentPacker(_GroupedPacker):
    """One document per sample; a longer one gives several, which share a token.

    A document of less than two tokens has nothing to predict, and gives none.
    """

    def _count(self, boundaries: Integers) -> Integers:
        return self._per_document(boundaries).sum(axis=1)

    def _find(self, boundaries: Integers, ranks: Integers) -> Pieces:
        ends = np.cumsum(self._per_document(boundaries), axis=1)
        rows = np.arange(ranks.size)
        documents = (ends <= ranks[:, None]).sum(axis=1)
        before = np.where(documents > 0, ends[rows, documents - 1], 0)
        starts = boundaries[rows, documents] + (ranks - before) * self.seq_length
        left = boundaries[rows, documents + 1] - starts - 1
        return Pieces(starts, np.minimum(left, self.seq_length))

    def _per_document(self, boundaries: Integers) -> Integers:
        predictable = np.diff(boundaries, axis=1) - 1
        return np.maximum(-(-predictable // self.seq_length), 0)


class OverflowPacker(_GroupedPacker):
    """As many whole documents as fit; the first one that does not begins the next sample.

    A sample has room for seq_length + 1 tokens. A document that is longer gives full samples, which
    share a token, and what is left of it is packed like a document.
    """

    def _count(self, boundaries: Integers) -> Integers:
        tokens, counts = boundaries[:, 0], np.zeros(len(boundaries), np.int64)
        while (unfinished := tokens + 1 < boundaries[:, -1]).any():
            step = self._step(boundaries, tokens)
            counts += np.where(unfinished, step.num_samples, 0)
            tokens = np.where(unfinished, step.next, tokens)
        return counts

    def _find(self, boundaries: Integers, ranks: Integers) -> Pieces:
        starts, num_inputs = np.empty_like(ranks), np.empty_like(ranks)
        rows, tokens = np.arange(ranks.size), boundaries[:, 0]
        while rows.size:
            step = self._step(boundaries, tokens)
            here = ranks < step.num_samples
            starts[rows[here]] = tokens[here] + ranks[here] * self.seq_length
            num_inputs[rows[here]] = step.num_inputs[here]
            on = ~here
            rows, boundaries, tokens = rows[on], boundaries[on], step.next[on]
            ranks = ranks[on] - step.num_samples[on]
        return Pieces(starts, num_inputs)

    def _step(self, boundaries: Integers, tokens: Integers) -> "_Step":
        """Return the sample that begins at each token, or all full ones of a long document."""
        rows, room = np.arange(tokens.size), self.seq_length + 1
        fitting = (boundaries <= (tokens + room)[:, None]).sum(axis=1) - 1
        ends = boundaries[rows, fitting]
        # One token alone predicts nothing: a document too long for the rest takes it along.
        long = ends - tokens < 2
        next_ends = boundaries[rows, np.minimum(fitting + 1, _GROUP)]
        full = np.where(long, -(-(next_ends - tokens - room) // self.seq_length), 1)
        return _Step(
            np.where(long, tokens + full * self.seq_length, ends),
            full,
            np.where(long, self.seq_length, ends - tokens - 1),
        )


class _Step(NamedTuple):
    next: npt.NDArray[np.int64]
    num_samples: npt.NDArray[np.int64]
    num_inputs: npt.NDArray[np.int64]
