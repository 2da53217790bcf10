"""What every form of attention is told besides q, k and v."""

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionOptions(NamedTuple):
    """The options of `attention`, for the forms that it chooses from.

    Autograd sees no tensor inside a tuple: its functions take `prev_scores` as well.

    Attributes:
        slopes: (h,) positive, penalty per token of distance; None for no ALiBi.
        top_k: keys per query; None keeps all.
        prev_scores: (b, h, s, t) sum over the layers before; None in the first.
        row_start: (b, s) int32, first key that each query sees, such as its document's; None for
            the first of all.
        dropout_p: probability that a kept key's weight is dropped, drawn from torch's generator.
            With top_k, every backend drops the same weights.
        return_scores: whether the next layer wants this one's scores.
        reuse_scores: if true, the scores are written into `prev_scores`, and in the backward pass
            their gradient is written into the incoming gradient. The old values are overwritten.
            `prev_scores` must come from an earlier layer with the same row_start, and only the
            next layer may use the returned scores.
    """

    slopes: Tensor | None = None
    top_k: int | None = None
    prev_scores: Tensor | None = None
    row_start: Tensor | None = None
    dropout_p: float = 0.0
    return_scores: bool = False
    reuse_scores: bool = False

    def in_place(self) -> bool:
        """Return whether kernels write the scores where `prev_scores` lies."""
        return (
            self.reuse_scores
            and self.return_scores
            and self.prev_scores is not None
            and self.prev_scores.is_contiguous()
            and self.prev_scores.dtype == torch.float32
        )
