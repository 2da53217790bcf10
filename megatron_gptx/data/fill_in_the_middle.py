"""Documents rearranged so that a model learns to fill in their middle.

Source: Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle",
arXiv:2207.14255, sections 3 and 4.4 (cut at token level).
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.data.document_index import Integers
from megatron_gptx.data.permutation import mix
from megatron_gptx.distributed.seeds import derive_seed

_NUM_SENTINELS: Final = 3
# Per document: whether, which order, and two cuts.
_DRAWS: Final = np.arange(4).astype(np.uint64)


class FillInTheMiddle(NamedTuple):
    """How often, in which order, and with which ids around the parts.

    A document, or what a sample holds of it, becomes PREFIX prefix SUFFIX suffix MIDDLE middle
    (PSM), or PREFIX SUFFIX suffix MIDDLE prefix middle (SPM). Its length stays: the three ids take
    the place of its last three tokens, before the end of document where one ends it.

    Attributes:
        rate: share of the documents that are rearranged.
        spm_rate: share of those that become SPM.
        prefix: id that stands before the prefix.
        middle: id that stands before the middle.
        suffix: id that stands before the suffix.
        end_of_document: id that stays at the end of a document; None where documents have none.
    """

    rate: float
    spm_rate: float
    prefix: int
    middle: int
    suffix: int
    end_of_document: int | None

    def rearrange(
        self,
        ids: npt.NDArray[np.integer],
        rows: Integers,
        columns: Integers,
        num_tokens: Integers,
        positions: Integers,
        *,
        seed: int,
    ) -> None:
        """Rearrange documents in place, decided by nothing but the seed and a sample's position.

        Args:
            ids: (n, t) samples.
            rows: (m,) samples in which a document begins behind the first token ...
            columns: (m,) ... and where it does.
            num_tokens: (n,) tokens of each sample that are not filling.
            positions: (n,) of the samples, over all epochs.
            seed: of the dataset.
        """
        parts = _parts(rows, columns, num_tokens)
        key = np.uint64(derive_seed(seed, "fill in the middle"))
        samples = mix(positions.astype(np.uint64) + key)[parts.rows]
        documents = mix(samples + parts.numbers.astype(np.uint64))
        draws = mix(documents[:, None] + _DRAWS)
        chances = (draws[:, :2] >> np.uint64(11)) * 2.0**-53
        for number in np.flatnonzero(chances[:, 0] < self.rate).tolist():
            row, _, begin, end = (int(part[number]) for part in parts)
            spm = bool(chances[number, 1] < self.spm_rate)
            self._rearrange_one(ids[row, begin:end], draws[number, 2:].tolist(), spm=spm)

    def _rearrange_one(
        self, document: npt.NDArray[np.integer], cuts: list[int], *, spm: bool
    ) -> None:
        ended = document.size and document[-1] == self.end_of_document
        length = document.size - bool(ended) - _NUM_SENTINELS
        if length < 1:
            return  # nothing would be left to fill in
        first, last = sorted(cut % (length + 1) for cut in cuts)
        text = document[:length].copy()
        prefix, middle, suffix = text[:first], text[first:last], text[last:]
        if spm:
            parts = [[self.prefix, self.suffix], suffix, [self.middle], prefix, middle]
        else:
            parts = [[self.prefix], prefix, [self.suffix], suffix, [self.middle], middle]
        document[: length + _NUM_SENTINELS] = np.concatenate(parts)


class _Parts(NamedTuple):
    """What samples hold of documents: (k,) sample, number within the sample, first and last."""

    rows: Integers
    numbers: Integers
    begins: Integers
    ends: Integers


def _parts(rows: Integers, columns: Integers, num_tokens: Integers) -> _Parts:
    """Return the parts of samples of which more documents begin at (rows, columns)."""
    rows = np.concatenate([np.arange(num_tokens.size), rows])
    begins = np.concatenate([np.zeros(num_tokens.size, np.int64), columns])
    order = np.lexsort((begins, rows))
    rows, begins = rows[order], begins[order]
    first = np.searchsorted(rows, rows)
    is_last = np.append(rows[1:] != rows[:-1], True)
    ends = np.where(is_last, num_tokens[rows], np.append(begins[1:], 0))
    return _Parts(rows, np.arange(rows.size) - first, begins, ends)
