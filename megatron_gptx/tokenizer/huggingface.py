"""A tokenizer.json of Hugging Face `tokenizers`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from megatron_gptx.config.errors import UserError

# What known vocabularies end a document with, the most specific first.
END_OF_DOCUMENT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eod>", "<eos>", "</s>", "[SEP]")


class HuggingFaceTokenizer:
    """A Tokenizer over a tokenizer.json, of which only the mapping of text is used.

    What the file says about truncation, padding and tokens added around a text is for fine-tuned
    models and would silently change a corpus.
    """

    def __init__(self, path: Path, end_of_document_name: str | None = None) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokenizer.json: {error}") from error
        self.path = path
        self._name = end_of_document_name
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # that is: as text
        if (name := self._end_of_document_name()) is not None:
            # An added token that is not marked as special would still be found in text.
            self._tokenizer.add_special_tokens([name])

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, which may be more than the number of tokens."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def end_of_document(self) -> int:
        """The id that ends a document."""
        name = self._end_of_document_name()
        number = None if name is None else self._tokenizer.token_to_id(name)
        if number is None:
            asked = f"no token {self._name!r}" if self._name else "no token that ends a document"
            raise UserError(
                f"{self.path}: {asked}; known names are {', '.join(END_OF_DOCUMENT_NAMES)}; name "
                "the token of this vocabulary with --eod-token, or train one with "
                "tools/train_tokenizer.py"
            )
        return number

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens spelled out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _end_of_document_name(self) -> str | None:
        names = (self._name,) if self._name else END_OF_DOCUMENT_NAMES
        return next((n for n in names if self._tokenizer.token_to_id(n) is not None), None)
