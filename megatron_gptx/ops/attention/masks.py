"""Which keys a query sees, and how far away they are: s queries, the last of t positions."""

import torch
from torch import Tensor


def check_selection(s: int, t: int, top_k: int | None) -> None:
    """Refuse what no form of attention computes.

    Raises:
        ValueError: there are more queries than keys, or top_k is below 1.
    """
    if s > t:
        raise ValueError(
            f"there are {s} queries for {t} keys; the queries are the last of the keys' positions"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")


def unseen(s: int, t: int, row_start: Tensor | None, device: torch.device) -> Tensor:
    """Return a mask of the keys that a query does not see.

    Args:
        s: queries.
        t: keys.
        row_start: (b, s), first key that each query sees; None for the first of all.
        device: of the result.

    Returns:
        (s, t) bool, or (b, 1, s, t) with a row_start.
    """
    keys = torch.arange(t, device=device)
    future = keys > torch.arange(t - s, t, device=device)[:, None]
    if row_start is None:
        return future
    return future | (keys < row_start[:, None, :, None])


def key_offset(s: int, t: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (s, t) offsets j - i, in tokens: positive for keys in a query's future."""
    keys = torch.arange(t, device=device, dtype=dtype)
    return keys - keys[t - s :, None]


def clear_unseen(pairs: Tensor, row_start: Tensor | None) -> None:
    """Set the entries of (b, h, s, t) whose keys a query does not see to 0."""
    s, t = pairs.shape[-2:]
    if row_start is None:
        pairs.tril_(t - s)
    else:
        pairs.masked_fill_(unseen(s, t, row_start, pairs.device), 0)
