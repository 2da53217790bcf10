"""Vocabularies of tiktoken."""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Batch, batch_of, files_fingerprint, no_end_of_document


class TiktokenTokenizer:
    """A Tokenizer over a .tiktoken file of ranks.

    The file says neither how text is split nor which tokens are special: tiktoken itself knows that
    by the encoding's name, which must be the file's name, such as cl100k_base.tiktoken.

    Args:
        path: the file.
        end_of_document_name: the token that ends a document; null takes <|endoftext|>.
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
        parameters = _parameters(path)
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
        number = self._special.get(self._name or "<|endoftext|>")
        if number is None:
            raise UserError(no_end_of_document(self.path, self._name))
        return number

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that are not text."""
        return frozenset(self._special)

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
        import gigatoken  # an extra

        special = self._special if self._allowed else {}
        known = gigatoken.Tokenizer.from_tiktoken(self.path, special_tokens=special)
        return known.backend


def _parameters(path: Path) -> dict[str, Any]:
    from tiktoken_ext import openai_public

    make = openai_public.ENCODING_CONSTRUCTORS.get(path.stem)
    if make is None or path.stem == "gpt2":
        names = ", ".join(sorted(set(openai_public.ENCODING_CONSTRUCTORS) - {"gpt2"}))
        raise UserError(
            f"{path}: the file's name must tell the encoding that it belongs to: {names}"
        )
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a file of tiktoken's ranks: {error}") from error
    # What makes an encoding would download the ranks: it gets the file's instead.
    with patch.object(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks):
        parameters = make()
    parameters.pop("explicit_n_vocab", None)
    return parameters
