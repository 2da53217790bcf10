"""The tokenizer that a name stands for: the same names wherever one is asked for."""

import os

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Tokenizer
from megatron_gptx.tokenizer.locate import locate

BYTES = "bytes"


def load_tokenizer(
    name: str | os.PathLike[str],
    *,
    merges: str | os.PathLike[str] | None = None,
    end_of_document_name: str | None = None,
    special_tokens_as_text: bool = True,
) -> Tokenizer:
    """Return a tokenizer.

    Args:
        name: `bytes`, or the file, folder or name that `locate` finds: a tokenizer.json, GPT-2's
            vocabulary with its merges, a model of SentencePiece, ranks of tiktoken, tekken.json.
        merges: GPT-2's merges.txt, where it lies elsewhere.
        end_of_document_name: the token that ends a document; null looks for the usual ones.
        special_tokens_as_text: encode a marker that text spells out as its characters, not as its
            id.

    Raises:
        UserError: the file is missing or not a tokenizer, or its package is not installed.
    """
    if os.fspath(name) == BYTES:
        from megatron_gptx.tokenizer.bytes import ByteTokenizer

        if not special_tokens_as_text:
            raise UserError("bytes: a special token in text can only be text")
        return ByteTokenizer(end_of_document_name=end_of_document_name)
    files = locate(name, merges)
    file = files.paths[0]
    if files.kind == "sentencepiece":
        from megatron_gptx.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(
            file,
            end_of_document_name=end_of_document_name,
            special_tokens_as_text=special_tokens_as_text,
        )
    if files.kind in ("ranks", "tekken"):
        from megatron_gptx.tokenizer.tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(
            file,
            end_of_document_name=end_of_document_name,
            special_tokens_as_text=special_tokens_as_text,
        )
    from megatron_gptx.tokenizer.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(
        *files.paths,
        end_of_document_name=end_of_document_name,
        special_tokens_as_text=special_tokens_as_text,
    )
