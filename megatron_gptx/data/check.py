"""Everything about the data that can be known to be wrong before a process starts."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.files import file_sha256
from megatron_gptx.data.indexed_dataset import IndexedDataset
from megatron_gptx.data.manifest import manifest_path, read_manifest
from megatron_gptx.tokenizer.build import load_tokenizer

# Where no manifest tells the largest id: evenly spaced blocks, 4 M tokens in all.
_BLOCKS = 64
_BLOCK_TOKENS = 1 << 16


def check_datasets(config: Config) -> None:
    """Raise one error with everything that is wrong with the data of a run.

    Files are opened and validated, every part must hold at least one sample, the tokenizer must
    exist and be the one that the datasets were made with, and no id may lie outside the model's
    vocabulary. The largest id is taken from the dataset's manifest; without one, 4 million tokens
    spread over the file are read, and the loader looks at every other one as it comes.

    Raises:
        UserError: the problems, one per line.
    """
    data, problems = config.data, []
    try:
        build_datasets(data, seq_length=config.model.seq_length, seed=config.training.seed)
    except UserError as error:
        problems.append(str(error))

    tokenizer_sha256 = None
    if data.tokenizer is not None:
        try:
            vocab_size = load_tokenizer(data.tokenizer).vocab_size
            tokenizer_sha256 = file_sha256(Path(data.tokenizer))
            if vocab_size > config.model.vocab_size:
                problems.append(
                    f"{data.tokenizer}: its vocabulary of {vocab_size} does not fit into "
                    f"model.vocab_size {config.model.vocab_size}; set that to at least {vocab_size}"
                )
        except UserError as error:
            problems.append(str(error))

    for prefix in dict.fromkeys(filter(None, (data.train, data.valid))):
        try:
            problems += _dataset_problems(
                IndexedDataset(prefix), config.model.vocab_size, tokenizer_sha256
            )
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _dataset_problems(
    dataset: IndexedDataset, vocab_size: int, tokenizer_sha256: str | None
) -> list[str]:
    problems = []
    manifest = _matching_manifest(dataset)
    low, high = (0, manifest["max_id"]) if manifest else _sampled_range(dataset)
    if low < 0 or high >= vocab_size:
        problems.append(
            f"{dataset.prefix}: token id {low if low < 0 else high} is outside model.vocab_size "
            f"{vocab_size}; set that to at least {high + 1}, or use the dataset of this model's "
            "tokenizer"
        )
    made_with = manifest["tokenizer"]["sha256"] if manifest else None
    if made_with and tokenizer_sha256 and made_with != tokenizer_sha256:
        problems.append(
            f"{dataset.prefix}: made with another tokenizer (sha256 {made_with[:12]}) than "
            f"data.tokenizer (sha256 {tokenizer_sha256[:12]}): preprocess it again, or name its own"
        )
    return problems


def _matching_manifest(dataset: IndexedDataset) -> dict[str, Any] | None:
    """Return the manifest if it speaks of these files: they may have been replaced since."""
    manifest = read_manifest(manifest_path(dataset.prefix))
    if manifest is None or manifest.get("num_tokens") != dataset.num_tokens:
        return None
    known = isinstance(manifest.get("max_id"), int) and isinstance(manifest.get("tokenizer"), dict)
    return manifest if known and "sha256" in manifest["tokenizer"] else None


def _sampled_range(dataset: IndexedDataset) -> tuple[int, int]:
    if dataset.num_tokens == 0:
        return 0, -1
    last = max(0, dataset.num_tokens - _BLOCK_TOKENS)
    blocks = [
        dataset.read(start, min(start + _BLOCK_TOKENS, dataset.num_tokens))
        for start in np.linspace(0, last, _BLOCKS, dtype=np.int64).tolist()
    ]
    return min(int(ids.min()) for ids in blocks), max(int(ids.max()) for ids in blocks)
