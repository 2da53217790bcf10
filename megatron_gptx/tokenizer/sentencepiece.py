"""Vocabularies of SentencePiece."""

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
from megatron_gptx.tokenizer.markers import is_marker
from megatron_gptx.tokenizer.pieces import guard_pieces


class SentencePieceTokenizer:
    """A Tokenizer over a .model file.

    SentencePiece itself never reads a control symbol from text. It does read symbols that its user
    defined: those of them that are markers become control symbols here.

    Args:
        path: the file.
        end_of_document_name: the piece that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a marker that text spells out as its characters.
    """

    def __init__(
        self,
        path: Path,
        *,
        end_of_document_name: str | None = None,
        special_tokens_as_text: bool = True,
    ) -> None:
        try:
            import sentencepiece  # an extra
        except ImportError as error:
            raise UserError(
                f"{path}: needs the package sentencepiece: pip install 'megatron_gptx[data]'"
            ) from error
        try:
            self._model = path.read_bytes()
            self._decoder = self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=self._model
            )
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece model: {error}") from error
        ends = {end_of_document_name} if end_of_document_name else set(END_OF_DOCUMENT_NAMES)
        guarded: set[str] = set()
        if self._may_become_markers(ends):
            guarded, self._model = guard_pieces(self._model, ends)
        if not special_tokens_as_text:
            if not guarded:
                raise UserError(f"{path}: SentencePiece reads no special token from text")
        elif guarded:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self._guarded = frozenset(guarded)
        self.path, self.files = path, (path,)
        self.fingerprint = files_fingerprint(path)
        self.engine = f"sentencepiece {version('sentencepiece')}"
        self._name = end_of_document_name

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._processor.get_piece_size()

    @property
    def end_of_document(self) -> int:
        """The id that ends a document."""
        for name in (self._name,) if self._name else END_OF_DOCUMENT_NAMES:
            number = self._processor.piece_to_id(name)
            if self._processor.id_to_piece(number) == name:  # unknown names give the unknown id
                return number
        raise UserError(no_end_of_document(self.path, self._name))

    @property
    def special_tokens(self) -> frozenset[str]:
        """The control symbols, and what is guarded like one."""
        processor = self._processor
        numbers = filter(processor.is_control, range(self.vocab_size))
        return self._guarded | {processor.id_to_piece(number) for number in numbers}

    def id_of(self, token: str) -> int | None:
        """Return the id of a marker."""
        return self._processor.piece_to_id(token) if token in self.special_tokens else None

    def _may_become_markers(self, ends: set[str]) -> bool:
        """Tell whether it is worth looking at the kind of every piece, which takes a while."""
        names = self._decoder.id_to_piece(list(range(self._decoder.get_piece_size())))
        return any(
            (is_marker(name) or name in ends) and not self._decoder.is_control(number)
            for number, name in enumerate(names)
            if name[:1] in "<[" or name in ends
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._processor.encode(text, out_type=int)

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Return the ids of several texts."""
        return batch_of(self._processor.encode(list(texts), out_type=int, num_threads=1))

    def has_id(self, number: int) -> bool:
        """Return whether an id stands for something; some pieces are there to fill gaps."""
        return 0 <= number < self.vocab_size and not self._decoder.is_unused(number)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; control symbols have none."""
        return self._decoder.decode(list(ids))

    def open_gigatoken(self) -> Any:
        """Return gigatoken's encoder for this vocabulary; it raises where it has none."""
        import gigatoken  # an extra

        if self._processor is self._decoder and self._guarded:
            raise NotImplementedError("gigatoken does not read markers from text")
        return gigatoken.Tokenizer.from_sentencepiece(self._model).backend
