"""Vocabularies that the `tokenizers` library encodes: tokenizer.json, and GPT-2's two files."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import (
    END_OF_DOCUMENT_NAMES,
    Batch,
    batch_of,
    files_fingerprint,
    no_end_of_document,
)


class HuggingFaceTokenizer:
    """A Tokenizer over a tokenizer.json, of which only the mapping of text is used.

    What the file says about truncation, padding and tokens added around a text is for fine-tuned
    models and would silently change a corpus.

    Args:
        paths: a tokenizer.json, or GPT-2's vocab.json and merges.txt.
        end_of_document_name: the token that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a special token that text spells out as its characters.
    """

    def __init__(
        self,
        *paths: Path,
        end_of_document_name: str | None = None,
        special_tokens_as_text: bool = True,
    ) -> None:
        self.path, self.files = paths[0], paths
        try:
            self._tokenizer = _open(*paths)
        except Exception as error:  # the library raises nothing narrower
            what = "a tokenizer.json" if len(paths) == 1 else f"a vocabulary with {paths[1]}"
            raise UserError(f"{self.path}: not {what}: {error}") from error
        self.fingerprint = files_fingerprint(*paths)
        self.engine = f"tokenizers {tokenizers.__version__}"
        self._name = end_of_document_name
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = special_tokens_as_text
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
            raise UserError(no_end_of_document(self.path, self._name))
        return number

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that are not text."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return batch_of([encoding.ids for encoding in encodings])

    def has_id(self, number: int) -> bool:
        """Return whether an id stands for something: the ids of a file may have gaps."""
        return 0 <= number < self.vocab_size and self._tokenizer.id_to_token(number) is not None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens spelled out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def open_gigatoken(self) -> Any:
        """Return gigatoken's encoder for this vocabulary; it raises where it has none."""
        from gigatoken.gigatoken_rs import load_hf_json  # an extra

        content = orjson.loads(self._tokenizer.to_str())
        if self._tokenizer.encode_special_tokens:
            added = content["added_tokens"]
            content["added_tokens"] = [token for token in added if not token["special"]]
        return load_hf_json(orjson.dumps(content))

    def _end_of_document_name(self) -> str | None:
        names = (self._name,) if self._name else END_OF_DOCUMENT_NAMES
        return next((n for n in names if self._tokenizer.token_to_id(n) is not None), None)


def _open(path: Path, merges: Path | None = None) -> tokenizers.Tokenizer:
    if merges is None:
        return tokenizers.Tokenizer.from_file(str(path))
    opened = tokenizers.Tokenizer(models.BPE.from_file(str(path), str(merges)))
    opened.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    opened.decoder = decoders.ByteLevel()
    return opened
