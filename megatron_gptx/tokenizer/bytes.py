"""No vocabulary at all: a text is its bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Batch, no_end_of_document

_END_OF_DOCUMENT = "<|endoftext|>"


class ByteTokenizer:
    """A Tokenizer whose ids are the bytes of UTF-8, and 256 for the end of a document.

    Source: Xue et al. 2022, "ByT5", arXiv:2105.13626.
    """

    vocab_size = 257
    engine = "bytes"
    fingerprint = hashlib.sha256(b"UTF-8 bytes, 256 ends a document").hexdigest()
    special_tokens = frozenset({_END_OF_DOCUMENT})
    files: tuple[Path, ...] = ()

    def __init__(self, *, end_of_document_name: str | None = None) -> None:
        self._name = end_of_document_name

    @property
    def end_of_document(self) -> int:
        """The id that ends a document."""
        if self._name not in (None, _END_OF_DOCUMENT):
            raise UserError(no_end_of_document("bytes", self._name))
        return 256

    def id_of(self, token: str) -> int | None:
        """Return the id of the end of a document."""
        return 256 if token == _END_OF_DOCUMENT else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return Batch(np.frombuffer(b"".join(encoded), np.uint8), lengths)

    def has_id(self, number: int) -> bool:
        """Return whether an id stands for something."""
        return 0 <= number < self.vocab_size

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; bytes that are not UTF-8 become U+FFFD."""
        pieces: list[bytes] = [
            _END_OF_DOCUMENT.encode() if number == 256 else bytes([number]) for number in ids
        ]
        return b"".join(pieces).decode(errors="replace")

    def open_gigatoken(self) -> Any:
        """Raise: nothing could be faster than bytes."""
        raise NotImplementedError("bytes need no engine")
