"""The tokenizer that a file holds."""

import os
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Tokenizer

BYTES = "bytes"


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    merges: str | os.PathLike[str] | None = None,
    end_of_document_name: str | None = None,
    special_tokens_as_text: bool = True,
) -> Tokenizer:
    """Return the tokenizer of a file, whose name tells its kind.

    Args:
        path: NAME.model of SentencePiece, NAME.tiktoken, GPT-2's vocab.json with merges.txt beside
            it, a folder with a tokenizer.json, any other tokenizer.json, or `bytes`.
        merges: GPT-2's merges.txt, where it lies elsewhere.
        end_of_document_name: the token that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a special token that text spells out as its characters, not
            as its id.

    Raises:
        UserError: the file is missing or not a tokenizer, or its package is not installed.
    """
    if os.fspath(path) == BYTES:
        from megatron_gptx.tokenizer.bytes import ByteTokenizer

        if not special_tokens_as_text:
            raise UserError("bytes: a special token in text can only be text")
        return ByteTokenizer(end_of_document_name=end_of_document_name)
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    files = [file] if merges is None else [file, Path(merges)]
    if file.name == "vocab.json" and merges is None and file.with_name("merges.txt").is_file():
        files.append(file.with_name("merges.txt"))
    for each in files:
        if not each.is_file():
            raise UserError(f"{each}: no such tokenizer file; gptx tokenizer makes one")
    if file.suffix == ".model":
        from megatron_gptx.tokenizer.sentencepiece import SentencePieceTokenizer

        if not special_tokens_as_text:
            raise UserError(f"{file}: SentencePiece reads no special token from text")
        return SentencePieceTokenizer(file, end_of_document_name=end_of_document_name)
    if file.suffix == ".tiktoken":
        from megatron_gptx.tokenizer.tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(
            file,
            end_of_document_name=end_of_document_name,
            special_tokens_as_text=special_tokens_as_text,
        )
    from megatron_gptx.tokenizer.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(
        *files,
        end_of_document_name=end_of_document_name,
        special_tokens_as_text=special_tokens_as_text,
    )
