"""gigatoken in the place of a tokenizer's own library, wherever its ids are equal.

It is many times faster and still young, so nothing is taken on trust: its ids are compared with the
library's before a run, on strings chosen to tell them apart and on the corpus itself, and again and
again while it runs.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby, islice
from typing import Any, Literal, NamedTuple

import numpy as np

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Batch, Tokenizer, batch_of

Wanted = Literal["auto", "gigatoken", "reference"]
EncodeBatch = Callable[[Sequence[str]], Batch]

_NUM_STRINGS = 2000
_NUM_DOCUMENTS = 200
_DOCUMENT_CHARACTERS = 1024  # of each document compared, so that the comparison takes no time
# Short texts are encoded together, a number of rows at a time, once there have been many of them.
_SHORT_CHARACTERS = 1000
_ROWS = 1024
_MANY = 100_000
_REMEMBERED_CHARACTERS = 1 << 27  # after which memory would be seen to grow
# First and last code point of what the strings are drawn from; text that is split by classes of
# characters goes wrong at the borders between them.
_RANGES = (
    *((0x20, 0x7E), (0x30, 0x39), (0x61, 0x7A), (0x00, 0x1F), (0x7F, 0xA0), (0xA1, 0x17F)),
    *((0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F)),
    *((0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x218F)),
    *((0x2190, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF)),
    *((0xFB00, 0xFFFD), (0x10000, 0x103FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF)),
    *((0x20000, 0x2A6DF), (0xE0000, 0xE007F), (0x10FF00, 0x10FFFF)),
)
_PIECES = (
    *("'s", "'LL", "n't", " ", "  ", "\t", "\n", "\r\n", "\n\n  ", "\u00a0", "\u3000", "\u200d"),
    *("\ufeff", "\u2028", "\x00", "e\u0301", "\u1e9e", "\u0130", "\ufb01", "123", "1234567", "²³"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "//", "==" * 9, "a" * 70, " " * 70, "_", "/*"),
    *("def f(x):", "http://a.b/c?d=e&f", "</s>", "<unk>", "[SEP]", "\u2581", "##", "Ġ", "<0x0A>"),
)


class Engine(NamedTuple):
    """What encodes, and why not gigatoken where it does not."""

    name: str
    reason: str | None = None


class EngineMismatchError(Exception):
    """gigatoken gave other ids than the tokenizer's own library, or none at all."""


def choose_engine(
    tokenizer: Tokenizer, documents: Iterator[str], *, wanted: Wanted = "auto"
) -> tuple[Engine, bool]:
    """Return the engine that encodes this vocabulary, and whether it is gigatoken.

    Args:
        tokenizer: the vocabulary and its own library.
        documents: the corpus, of which the first documents are compared.
        wanted: `gigatoken` makes an error of what `auto` gives as the reason.

    Raises:
        UserError: gigatoken is wanted and cannot be had.
    """
    if wanted == "reference":
        return Engine(tokenizer.engine, "asked for the reference"), False
    try:
        fast = gigatoken_encoder(tokenizer)
        compare(fast, tokenizer, probe_strings(tokenizer))
        first = islice(documents, _NUM_DOCUMENTS)
        compare(fast, tokenizer, [text[:_DOCUMENT_CHARACTERS] for text in first])
    except EngineMismatchError as error:
        reason = str(error)
    else:
        return Engine(f"gigatoken {version('gigatoken')}"), True
    if wanted == "gigatoken":
        raise UserError(f"--engine gigatoken: {reason}")
    return Engine(tokenizer.engine, reason), False


def may_have_gigatoken(tokenizer: Tokenizer) -> bool:
    """Return whether it is worth preparing for gigatoken before `choose_engine` knows."""
    return tokenizer.engine.split()[0] != "bytes" and find_spec("gigatoken") is not None


def gigatoken_encoder(tokenizer: Tokenizer) -> EncodeBatch:
    """Return what encodes with gigatoken, in the calling thread.

    Raises:
        EngineMismatchError: gigatoken is not there, or does not know such a vocabulary.
    """
    return _Gigatoken(tokenizer).encode_batch


class _Gigatoken:
    """gigatoken's encoder, opened again now and then: it remembers every word it has met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._num_short = self._characters = 0
        self._backend = self._open()

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        characters = sum(map(len, texts))
        self._characters += characters
        if self._characters > _REMEMBERED_CHARACTERS:
            self._backend = None  # before it is opened again, so that there are never two
            self._backend, self._characters = self._open(), characters
        batches = []
        with _panics():
            for short, group in groupby(texts, lambda text: len(text) < _SHORT_CHARACTERS):
                while some := list(islice(group, _ROWS)):
                    batches.append(self._encode_short(some) if short else self._encode_long(some))
        ids, lengths = zip(*batches, strict=True) if batches else ((), ())
        none = [np.zeros(0, np.int64)]
        return Batch(np.concatenate(ids or none), np.concatenate(lengths or none))

    def _encode_short(self, texts: list[str]) -> Batch:
        """Encode many at once, into the rows of a matrix: a call for each would cost more.

        The first time, that takes a quarter of a second and 40 MB, which only a corpus of many
        short documents is worth.
        """
        self._num_short += len(texts)
        if self._num_short < _MANY:
            return self._encode_long(texts)
        matrix, lengths = self._backend.encode_batch_padded(texts, self._padding, parallel=False)
        return Batch(matrix[np.arange(matrix.shape[1]) < lengths[:, None]], lengths)

    def _encode_long(self, texts: list[str]) -> Batch:
        return batch_of([self._backend.encode(text) for text in texts])

    def _open(self) -> Any:
        try:
            from gigatoken.gigatoken_rs import PadTruncate

            self._padding = PadTruncate(0)
            with _panics():
                return self._tokenizer.open_gigatoken()
        except ImportError:
            raise EngineMismatchError("gigatoken is not installed") from None
        except NotImplementedError as error:
            raise EngineMismatchError(str(error)) from None
        except EngineMismatchError:
            raise
        except Exception as error:  # its loaders raise anything
            reason = f"gigatoken does not know this vocabulary: {error}"
            raise EngineMismatchError(reason) from error


@contextmanager
def _panics() -> Iterator[None]:
    """Make a mismatch of an assertion that fails inside gigatoken; it is no Exception by itself."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EngineMismatchError(f"gigatoken failed: {error}") from None


def compare(fast: EncodeBatch, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raise an EngineMismatchError unless both give the same ids."""
    if not texts:
        return
    found, expected = fast(texts), tokenizer.encode_batch(texts)
    if np.array_equal(found.lengths, expected.lengths) and np.array_equal(found.ids, expected.ids):
        return
    for text in texts:
        ours, theirs = fast([text]).ids.tolist(), tokenizer.encode(text)
        if ours != theirs:
            raise EngineMismatchError(
                f"gigatoken gives {len(ours)} ids for {text[:40]!r} where {tokenizer.engine} gives "
                f"{len(theirs)} others"
            )
    raise EngineMismatchError("gigatoken gives other ids for texts together than for each alone")


def probe_strings(tokenizer: Tokenizer) -> list[str]:
    """Return strings of all kinds of characters, the same ones every time."""
    draw = random.Random(0)
    pieces = (*_PIECES, *sorted(tokenizer.special_tokens)[:20])
    strings = [f" {piece}{other}" for piece, other in zip(pieces, reversed(pieces), strict=True)]
    while len(strings) < _NUM_STRINGS:
        mixed = []
        for _ in range(draw.randint(1, 12)):
            if draw.random() < 0.4:
                mixed.append(draw.choice(pieces))
            else:
                first, last = draw.choice(_RANGES)
                mixed += [chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6))]
        strings.append("".join(mixed))
    return strings
