"""What every tokenizer can do."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

# What known vocabularies end a document with, the most specific first.
END_OF_DOCUMENT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eod>", "<eos>", "</s>", "[SEP]")


class Batch(NamedTuple):
    """The ids of some texts, back to back: (tokens,) ids and (texts,) int64 lengths."""

    ids: npt.NDArray[np.integer]
    lengths: npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """Text to ids and back.

    Unless it was opened otherwise, text is only text: a marker spelled out in it is encoded as its
    characters, never as its id, so no document can end itself.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def end_of_document(self) -> int:
        """The id that ends a document; a UserError where the vocabulary has none."""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """The markers: tokens that no text becomes, whatever the library calls them."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What has to be copied to take the tokenizer along; `load_tokenizer` opens the first."""
        ...

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what the ids depend on."""
        ...

    @property
    def engine(self) -> str:
        """The library that encodes, and its version."""
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of a marker, or None where there is no such one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        ...

    def has_id(self, number: int) -> bool:
        """Return whether an id stands for something; a vocabulary may have gaps."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens spelled out."""
        ...

    def open_gigatoken(self) -> Any:
        """Return gigatoken's encoder for this vocabulary.

        Raises:
            Exception: of any kind, where gigatoken does not know such a vocabulary.
        """
        ...


def batch_of(ids: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> Batch:
    """Return one batch from the ids of each text."""
    arrays = [np.asarray(row, np.uint32) for row in ids]
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    return Batch(np.concatenate(arrays or [np.zeros(0, np.uint32)]), lengths)


def files_fingerprint(*paths: Path) -> str:
    """Return the SHA-256 of some files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def no_end_of_document(source: object, name: str | None) -> str:
    """Return the message for a vocabulary without the token that shall end a document."""
    asked = f"no token {name!r}" if name else "no token that ends a document"
    return (
        f"{source}: {asked}; known names are {', '.join(END_OF_DOCUMENT_NAMES)}; name the token of "
        "this vocabulary with --eod-token, or train one with gptx tokenizer"
    )


def marker_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that no text becomes, in order."""
    found = {tokenizer.id_of(token) for token in tokenizer.special_tokens}
    return sorted(number for number in found if number is not None)
