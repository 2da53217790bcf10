"""Vocabularies of tiktoken."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import (
    END_OF_DOCUMENT_NAMES,
    Batch,
    batch_of,
    files_fingerprint,
    no_end_of_document,
)


class TiktokenTokenizer:
    """A Tokenizer over a file of ranks: tiktoken's own, Llama 3's and Qwen's, and tekken.json.

    Args:
        path: the file.
        end_of_document_name: the token that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a special token that text spells out as its characters.
    """

    def __init__(
        self,
        path: Path,
        *,
        end_of_document_name: str | None = None,
        special_tokens_as_text: bool = True,
    ) -> None:
        try:
            import tiktoken  # an extra
        except ImportError as error:
            raise UserError(
                f"{path}: needs the package tiktoken: pip install 'megatron_gptx[data]'"
            ) from error
        from megatron_gptx.tokenizer.ranks import read_ranks

        parameters, self._pretokenizer = read_ranks(path)
        self.path, self.files = path, (path,)
        self.fingerprint = files_fingerprint(path)
        self.engine = f"tiktoken {version('tiktoken')}"
        self._special: dict[str, int] = parameters["special_tokens"]
        self._name = end_of_document_name
        self._allowed = frozenset[str]() if special_tokens_as_text else self.special_tokens
        self._encoding = tiktoken.Encoding(**parameters)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, which may be more than the number of tokens."""
        return self._encoding.max_token_value + 1

    @property
    def end_of_document(self) -> int:
        """The id that ends a document."""
        for name in (self._name,) if self._name else END_OF_DOCUMENT_NAMES:
            if (number := self._special.get(name)) is not None:
                return number
        raise UserError(no_end_of_document(self.path, self._name))

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that are not text."""
        return frozenset(self._special)

    def id_of(self, token: str) -> int | None:
        """Return the id of a special token."""
        return self._special.get(token)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        allowed = set(self._allowed)
        return self._encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        return batch_of([self.encode(text) for text in texts])

    def has_id(self, number: int) -> bool:
        """Return whether an id stands for something: special tokens may leave gaps."""
        try:
            self._encoding.decode_single_token_bytes(number)
        except (KeyError, OverflowError):
            return False
        return True

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens spelled out."""
        return self._encoding.decode(list(ids))

    def open_gigatoken(self) -> Any:
        """Return gigatoken's encoder for this vocabulary; it raises where it has none."""
        if self.path.suffix == ".json":
            raise NotImplementedError("gigatoken does not read tekken.json")
        import gigatoken  # an extra

        special = self._special if self._allowed else {}
        known = gigatoken.Tokenizer.from_tiktoken(
            self.path, pretokenizer=self._pretokenizer, special_tokens=special
        )
        return known.backend
