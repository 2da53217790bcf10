"""Dropping attention weights by a counter, so that every backend drops the same ones.

Whether a weight survives depends on (seed, batch, head, query, key) alone: not on the device, the
number of threads, or the order in which anything is computed. csrc/include/philox.h is the same
function for the kernels.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def draw_seed() -> int:
    """Return a seed from torch's generator of the CPU, which decides all that is dropped."""
    return int(torch.randint(2**63 - 1, ()).item())


def survival(dropout_p: float, seed: int, keys: Tensor, num_keys: int) -> Tensor:
    """Return what the weights of some keys are multiplied by: 0, or 1 / (1 - dropout_p).

    Args:
        dropout_p: probability that a weight is dropped.
        seed: 63 bits.
        keys: (b, h, s, n) positions of keys; the queries are the last s of the t positions.
        num_keys: t.

    Returns:
        (b, h, s, n) float32.
    """
    b, h, s, _ = keys.shape
    device = keys.device
    batch, head = torch.arange(b, device=device), torch.arange(h, device=device)
    query = torch.arange(num_keys - s, num_keys, device=device)
    words = philox(
        seed, batch.view(-1, 1, 1, 1), head.view(-1, 1, 1), query.view(-1, 1), keys.long()
    )
    kept = words >= int(dropout_p * 2**32)
    return kept.float() * (1 / (1 - dropout_p))


def philox(seed: int, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return 32 random bits per element of the int64 arguments, broadcast against each other.

    Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3: the
    first word of Philox-4x32 of 10 rounds.
    """
    c0, c1, c2, c3 = key, query, head, batch
    k0, k1 = seed & _WORD, seed >> 32
    for _ in range(10):
        # Products of two words fill 64 bits; int64 wraps, and the masks read it as unsigned.
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (b >> 32) & _WORD ^ c1 ^ k0, b & _WORD
        c2, c3 = (a >> 32) & _WORD ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0
