"""What every tokenizer can do."""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back.

    Text is only text: a special token spelled out in it is encoded as its characters, never as its
    id, so no document can end itself.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def end_of_document(self) -> int:
        """The id that ends a document; a UserError where the vocabulary has none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens spelled out."""
        ...
