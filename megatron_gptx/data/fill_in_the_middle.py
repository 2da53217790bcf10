"""Documents rearranged so that a model learns to fill in their middle.

Source: Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle",
arXiv:2207.14255, sections 3 and 4.4 (cut at token level).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.data.documents import Integers
from megatron_gptx.data.order import mix
from megatron_gptx.distributed.seeds import derive_seed

_NUM_SENTINELS = 3
_NUM_DRAWS = 4  # per document: whether, which order, and two cuts


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
        key = np.uint64(derive_seed(seed, "fill in the middle"))
        keys = mix(positions.astype(np.uint64) + key)
        for row in range(len(ids)):
            inner = columns[rows == row]
            edges = np.unique(np.concatenate([[0], inner, [num_tokens[row]]]))
            counters = np.arange(_NUM_DRAWS * (edges.size - 1), dtype=np.uint64)
            draws = mix(keys[row] + mix(counters)).reshape(-1, _NUM_DRAWS)
            chances = (draws[:, :2] >> np.uint64(11)) * 2.0**-53
            for document in np.flatnonzero(chances[:, 0] < self.rate):
                part = ids[row, edges[document] : edges[document + 1]]
                cuts = draws[document, 2:].tolist()
                self._rearrange_one(part, cuts, spm=chances[document, 1] < self.spm_rate)

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
