"""What tells one dataset from another, whatever its files are called."""

import hashlib
from pathlib import Path
from typing import Any

from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError, why
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.tokenizer.build import load_tokenizer

# Of each file: all of a small one, and blocks spread evenly over a large one.
_BLOCKS = 64
_BLOCK_BYTES = 1 << 16


def fingerprints(data: DataConfig) -> dict[str, Any]:
    """Return sizes and a checksum of each dataset that is trained on, and one of the tokenizer.

    A dataset of any size is read in no time, so that a change between two blocks is not seen.

    Raises:
        UserError: a file cannot be read.
    """
    prefixes = {*data.train_weights}
    prefixes |= {labels for prefix, labels in data.labels.items() if prefix in prefixes}
    tokenizer = None if data.tokenizer is None else load_tokenizer(data.tokenizer).fingerprint
    datasets = {prefix: _fingerprint(prefix) for prefix in sorted(prefixes)}
    return {"datasets": datasets, "tokenizer": tokenizer}


def _fingerprint(prefix: str) -> dict[str, int | str]:
    digest = hashlib.sha256()
    sizes = [_add_blocks(digest, path) for path in (bin_path(prefix), idx_path(prefix))]
    return {"bytes": sizes[0], "index_bytes": sizes[1], "sha256": digest.hexdigest()}


def _add_blocks(digest: Any, path: Path) -> int:
    """Add a file's size and blocks of it to a checksum; return the size."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            last = max(0, size - _BLOCK_BYTES)
            for number in range(_BLOCKS):
                file.seek(last * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from None
    return size
