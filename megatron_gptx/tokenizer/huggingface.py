"""Vocabularies that the `tokenizers` library encodes: tokenizer.json, and GPT-2's two files."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
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
from megatron_gptx.tokenizer.markers import Spelling, is_barred, is_marker


class HuggingFaceTokenizer:
    """A Tokenizer over a tokenizer.json, of which only the mapping of text is used.

    What the file says about truncation, padding and tokens added around a text is for fine-tuned
    models and would silently change a corpus.

    Args:
        paths: a tokenizer.json, or GPT-2's vocab.json and merges.txt.
        end_of_document_name: the token that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a marker that text spells out as its characters.
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
        self._tokenizer.encode_special_tokens = self._as_text = special_tokens_as_text
        if unmarked := self._unmarked():
            # What the file does not call special would still be found in text.
            self._tokenizer.add_special_tokens(unmarked)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, which may be more than the number of tokens."""
        return max(self._vocabulary.values(), default=-1) + 1

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

    def id_of(self, token: str) -> int | None:
        """Return the id of a marker."""
        return self._tokenizer.token_to_id(token) if token in self.special_tokens else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.encode_batch([text]).ids.tolist()

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        batch = self._encode(texts)
        return batch if self._spelling is None else self._spelling.of(batch)

    def _encode(self, texts: Sequence[str]) -> Batch:
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

        if self._spelling is not None:
            raise NotImplementedError("gigatoken would make markers of text in this vocabulary")
        content = orjson.loads(self._tokenizer.to_str())
        if self._tokenizer.encode_special_tokens:
            added = content["added_tokens"]
            content["added_tokens"] = [token for token in added if not token["special"]]
        return load_hf_json(orjson.dumps(content))

    def _end_of_document_name(self) -> str | None:
        names = (self._name,) if self._name else END_OF_DOCUMENT_NAMES
        return next((n for n in names if self._tokenizer.token_to_id(n) is not None), None)

    def _unmarked(self) -> list[str]:
        """Return the markers that the file does not call special."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        names = {name for name in self._vocabulary if name.startswith("<") and is_barred(name)}
        names |= {token.content for token in added if is_marker(token.content)}
        if (end := self._end_of_document_name()) is not None:
            names.add(end)
        return sorted(names - special)

    @cached_property
    def _spelling(self) -> Spelling | None:
        """What keeps the model itself from making a marker of text; None where it never does.

        A vocabulary may hold a marker among its words, and a model that looks for words finds it,
        although the library passes over special tokens.
        """
        if not self._as_text:
            return None
        model = self._tokenizer.model
        unknown = {getattr(model, "unk_token", None), "<unk>", "[UNK]", "<UNK>"}
        markers = sorted(self.special_tokens - unknown)
        contexts = [text for name in markers for text in (name, f" {name} ", f"a{name}b", name * 2)]
        numbers = {self._vocabulary[name]: name for name in markers}
        contexts += [self.decode([number]) for number in numbers]  # a name may stand for bytes
        if not np.isin(self._encode(contexts).ids, list(numbers)).any():
            return None
        return Spelling({number: self._characters(name) for number, name in numbers.items()})

    def _characters(self, name: str) -> list[int]:
        """Return the ids of a marker's characters, or of their bytes."""
        ids: list[int] = []
        for character in name:
            pieces = [character] if character in self._vocabulary else []
            pieces = pieces or [f"<0x{byte:02X}>" for byte in character.encode()]
            unknown = getattr(self._tokenizer.model, "unk_token", None) or "<unk>"
            ids += [
                self._vocabulary.get(piece, self._vocabulary.get(unknown, -1)) for piece in pieces
            ]
        if min(ids) < 0 or self._vocabulary[name] in ids:
            raise UserError(
                f"{self.path}: {name!r} cannot be a marker: text becomes it, and this vocabulary "
                "has no other way to write its characters; name another token, or train a "
                "vocabulary with gptx tokenizer"
            )
        return ids


def _open(path: Path, merges: Path | None = None) -> tokenizers.Tokenizer:
    if merges is None:
        return tokenizers.Tokenizer.from_file(str(path))
    opened = tokenizers.Tokenizer(models.BPE.from_file(str(path), str(merges)))
    opened.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    opened.decoder = decoders.ByteLevel()
    return opened
