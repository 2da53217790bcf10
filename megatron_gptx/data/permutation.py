"""A shuffled order that is computed, not stored."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

_ROUNDS: Final = 8
_MASK: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB


class Permutation:
    """A keyed pseudo-random permutation of [0, size), in O(1) memory.

    A number is split into two digits, n = left * width + right, and each round adds a keyed hash
    of one digit to the other: a Feistel network whose halves need not be powers of two. It permutes
    [0, height * width), the smallest near-square that holds `size`; a value that falls outside
    [0, size) is permuted again until it falls inside (cycle walking), which keeps it a bijection.
    Only integer arithmetic modulo 2**64 is used, so every machine agrees, and the vectorised form
    with the scalar one.

    Sources: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", sections 4 and 5; the
    hash is the finaliser of SplitMix64 (Steele et al. 2014).
    """

    def __init__(self, size: int, key: int) -> None:
        assert 0 < size < 2**62, size
        self.size = size
        self._width = math.isqrt(size - 1) + 1
        self._height = -(-size // self._width)
        self._keys = [_mix((key + (i + 1) * _GOLDEN) & _MASK) for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Return where `index` goes."""
        assert 0 <= index < self.size, (index, self.size)
        left, right = divmod(index, self._width)
        while True:
            for i in range(0, _ROUNDS, 2):
                left = (left + _mix(right ^ self._keys[i])) % self._height
                right = (right + _mix(left ^ self._keys[i + 1])) % self._width
            value = left * self._width + right
            if value < self.size:
                return value

    def many(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return where each of (n,) indices goes, as (n,) int64."""
        values = np.asarray(indices, np.uint64)
        assert not values.size or values.max() < self.size, self.size
        values = self._once(values)
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._once(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _once(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        height, width = np.uint64(self._height), np.uint64(self._width)
        left, right = np.divmod(values, width)
        for i in range(0, _ROUNDS, 2):
            # Reduced before the sum: numpy's wraps at 2**64, the scalar form's does not.
            left = (left + mix(right ^ np.uint64(self._keys[i])) % height) % height
            right = (right + mix(left ^ np.uint64(self._keys[i + 1])) % width) % width
        return left * width + right


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a pseudo-random number for each number, the same on every machine."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
    return values ^ (values >> np.uint64(31))
