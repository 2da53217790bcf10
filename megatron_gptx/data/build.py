"""The datasets a configuration names."""

from typing import NamedTuple

from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.gpt_dataset import GPTDataset
from megatron_gptx.data.indexed_dataset import IndexedDataset

# Validation samples must not change with training.seed, or runs could not be compared.
_VALIDATION_SEED = 0


class Datasets(NamedTuple):
    """What is trained on, and what is evaluated on where there is anything."""

    train: GPTDataset
    valid: GPTDataset | None


def build_datasets(data: DataConfig, *, seq_length: int, seed: int) -> Datasets:
    """Open the training and validation datasets.

    With `split`, both are ranges of `train`'s documents, and the third share is left untouched.
    Validation samples are shuffled as well, so that the first few stand for all, but always in the
    same way.

    Raises:
        UserError: `train` is not set, a file is missing or damaged, or a part is too small.
    """
    if data.train is None:
        raise UserError("data.train is not set: give the prefix of a tokenised dataset")
    source = IndexedDataset(data.train)
    if data.split is None:
        train = GPTDataset(source, seq_length, seed=seed)
        if data.valid is None:
            return Datasets(train, None)
        valid_source = IndexedDataset(data.valid)
        return Datasets(train, GPTDataset(valid_source, seq_length, seed=_VALIDATION_SEED))

    edges = split_documents(data.split, source.num_documents)
    train = GPTDataset(source, seq_length, seed=seed, last_document=edges[0])
    if float(data.split.split(",")[1]) == 0:
        return Datasets(train, None)
    valid = GPTDataset(
        source,
        seq_length,
        seed=_VALIDATION_SEED,
        first_document=edges[0],
        last_document=edges[1],
    )
    return Datasets(train, valid)


def split_documents(split: str, num_documents: int) -> list[int]:
    """Return where each share of documents ends: '8,1,1' of 20 documents gives [16, 18, 20]."""
    shares = [float(share) for share in split.split(",")]
    return [round(sum(shares[: i + 1]) / sum(shares) * num_documents) for i in range(len(shares))]
