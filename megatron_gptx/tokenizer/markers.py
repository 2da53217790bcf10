"""Tokens that mark where something begins or ends. No text may ever become one of them.

A library calls a token special if its file says so, and files forget: sentinels stand in them like
runs of spaces, which are text. So a marker is known by its shape as well.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_gptx.tokenizer.base import Batch

# <|im_start|> and its like with wide bars; nothing that was learned from text looks so by chance.
_BARRED = re.compile("<[|\uff5c][^\\s<>]*[|\uff5c]>")
# Of tokens that somebody added by hand: <fim_prefix>, <EOT>, [INST], </s>; <td> is text, and so is
# <0x0A>, which stands for a byte.
_ADDED = re.compile(
    r"</?[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)+>|</?(?!0x)[A-Z][A-Z0-9]+>|\[/?[A-Z][A-Z0-9_]*\]"
    r"|</?(?:s|unk|pad|mask|bos|eos|eod|eot|sep|cls|unused\d+)>"
)


def is_barred(token: str) -> bool:
    """Tell whether a token is a marker by its shape, wherever in a vocabulary it stands."""
    return _BARRED.fullmatch(token) is not None


def is_marker(token: str) -> bool:
    """Tell whether a token that was added to a vocabulary is a marker by its shape."""
    return is_barred(token) or _ADDED.fullmatch(token) is not None


@dataclass(frozen=True)
class Spelling:
    """Puts the ids of its characters in the place of a marker that a text was encoded to.

    Attributes:
        ids: of each marker, the ids of its characters.
    """

    ids: Mapping[int, Sequence[int]]

    def of(self, batch: Batch) -> Batch:
        """Return a batch without markers."""
        found = np.flatnonzero(np.isin(batch.ids, list(self.ids)))
        if not found.size:
            return batch
        rows = np.searchsorted(np.cumsum(batch.lengths), found, side="right")
        lengths = batch.lengths.copy()
        pieces, at = [], 0
        for position, row in zip(found.tolist(), rows.tolist(), strict=True):
            spelled = self.ids[int(batch.ids[position])]
            pieces += [batch.ids[at:position], np.asarray(spelled, batch.ids.dtype)]
            lengths[row] += len(spelled) - 1
            at = position + 1
        return Batch(np.concatenate([*pieces, batch.ids[at:]]), lengths)
