"""The tokenizer that a file holds."""

import os
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import Tokenizer
from megatron_gptx.tokenizer.huggingface import HuggingFaceTokenizer


def load_tokenizer(
    path: str | os.PathLike[str], *, end_of_document_name: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json.

    Args:
        path: the file.
        end_of_document_name: the token that ends a document; null looks for the usual ones.

    Raises:
        UserError: the file is missing or not a tokenizer.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{os.fspath(path)}: no such tokenizer file; tools/train_tokenizer.py makes one"
        )
    return HuggingFaceTokenizer(Path(path), end_of_document_name)
