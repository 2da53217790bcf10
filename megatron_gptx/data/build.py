"""The datasets a configuration names."""

import math
from typing import NamedTuple

from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import OptionError, UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.blend import BlendedDataset
from megatron_gptx.data.fill_in_the_middle import FillInTheMiddle
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import matching_manifest
from megatron_gptx.tokenizer.build import load_tokenizer

# Validation samples must not change with training.seed, or runs could not be compared.
_VALIDATION_SEED = 0


class Datasets(NamedTuple):
    """What is trained on, and each validation set by its name, "" where it has none."""

    train: BlendedDataset
    valid: dict[str, BlendedDataset]


def build_datasets(data: DataConfig, *, seq_length: int, seed: int) -> Datasets:
    """Open the training and validation datasets.

    With `split`, both are ranges of `train`'s documents, and the third share is left untouched.
    Validation samples are shuffled as well, so that the first few stand for all, but always in the
    same way.

    Raises:
        UserError: `train` is not set, a file is missing or damaged, or a part is too small.
    """
    if data.train is None:
        raise _no_training_data()
    shaping = _plain(data)._replace(fill_in_the_middle=_fill_in_the_middle(data))
    opened = _Sources(data, seq_length)
    part = None if data.split is None else 0
    train = opened.blend(data.train_weights, seed=seed, shaping=shaping, part=part)
    return Datasets(train, opened.validation())


def build_validation(data: DataConfig, *, seq_length: int) -> dict[str, BlendedDataset]:
    """Open the validation sets alone; without `split`, the training data need not be there.

    Raises:
        UserError: as in `build_datasets`, and where there are none.
    """
    if data.split is not None and data.train is None:
        raise _no_training_data()
    if sets := _Sources(data, seq_length).validation():
        return sets
    raise OptionError("data.valid", "there is no validation data: set data.valid or data.split")


def _no_training_data() -> OptionError:
    return OptionError(
        "data.train",
        "is not set: give the prefix of a tokenised dataset, or several with weights",
    )


def _plain(data: DataConfig) -> Shaping:
    return Shaping(data.packing, data.isolate_documents, data.mask_document_ends)


class _Sources:
    """Opens each file once."""

    def __init__(self, data: DataConfig, seq_length: int) -> None:
        self.data, self.seq_length = data, seq_length
        self.files: dict[str, IndexedDataset] = {}

    def blend(
        self, weights: dict[str, float], *, seed: int, shaping: Shaping, part: int | None = None
    ) -> BlendedDataset:
        datasets = []
        for prefix in weights:
            source = self._open(prefix)
            infill = shaping.fill_in_the_middle
            own = None if infill is None else _ended_like(source, infill)
            first, last = 0, source.num_documents
            if part is not None:
                assert self.data.split is not None
                edges = [0, *split_documents(self.data.split, source.num_documents)]
                first, last = edges[part : part + 2]
            labels = self.data.labels.get(prefix)
            datasets.append(
                GPTDataset(
                    source,
                    self.seq_length,
                    seed=seed,
                    first_document=first,
                    last_document=last,
                    shaping=shaping._replace(fill_in_the_middle=own),
                    labels=None if labels is None else self._open(labels),
                )
            )
        return BlendedDataset(datasets, list(weights.values()))

    def validation(self) -> dict[str, BlendedDataset]:
        """Return the validation sets, as `data.valid` or `data.split` say."""
        data, part, sets = self.data, None, self.data.valid_sets
        if data.split is not None:
            part = 1
            sets = {"": data.train_weights} if float(data.split.split(",")[1]) else {}
        return {
            name: self.blend(weights, seed=_VALIDATION_SEED, shaping=_plain(data), part=part)
            for name, weights in sets.items()
        }

    def _open(self, prefix: str) -> IndexedDataset:
        if prefix not in self.files:
            self.files[prefix] = IndexedDataset(prefix)
        return self.files[prefix]


def split_documents(split: str, num_documents: int) -> list[int]:
    """Return where each share of documents ends: '8,1,1' of 20 documents gives [16, 18, 20]."""
    shares = [float(share) for share in split.split(",")]
    return [round(sum(shares[: i + 1]) / sum(shares) * num_documents) for i in range(len(shares))]


def decide_steps(config: Config) -> Config:
    """Return the configuration with `training.epochs`, where it is given, turned into steps.

    The last step takes what is missing to a whole global batch from the next epoch. An epoch of a
    blend has as many samples as its datasets have together.

    Raises:
        UserError: the data cannot be opened, or warm-up would take all steps.
    """
    if config.training.epochs is None:
        return config
    train = build_datasets(
        config.data, seq_length=config.model.seq_length, seed=config.training.seed
    ).train
    samples = config.training.epochs * train.samples_per_epoch
    steps = max(1, math.ceil(samples / config.batch.global_size))
    if config.schedule.warmup_steps >= steps:
        raise OptionError(
            "schedule.warmup_steps",
            f"warmup_steps {config.schedule.warmup_steps} leaves none of the {steps} steps that "
            f"training.epochs {config.training.epochs:g} gives",
        )
    training = config.training.model_copy(update={"steps": steps, "epochs": None})
    return config.model_copy(update={"training": training})


def _fill_in_the_middle(data: DataConfig) -> FillInTheMiddle | None:
    options = data.fill_in_the_middle
    if not options.rate:
        return None
    assert data.tokenizer is not None, "the configuration demands a tokenizer"
    tokenizer = load_tokenizer(data.tokenizer)
    wanted = {name: getattr(options, name) for name in ("prefix", "middle", "suffix")}
    ids = {}
    for name, token in wanted.items():
        if (number := tokenizer.id_of(token)) is None:
            raise OptionError(
                f"data.fill_in_the_middle.{name}",
                f"data.tokenizer {data.tokenizer} has no token {token!r} that no text becomes; add "
                "it to the vocabulary as a special one, or name the one that stands for it",
            )
        ids[name] = number
    try:
        end_of_document = tokenizer.end_of_document
    except UserError:
        end_of_document = None  # documents then end without one
    return FillInTheMiddle(
        rate=options.rate,
        spm_rate=options.spm_rate,
        end_of_document=end_of_document,
        **ids,
    )


def _ended_like(source: IndexedDataset, infill: FillInTheMiddle) -> FillInTheMiddle:
    """Return it with the id that this dataset's documents end with, which the manifest knows.

    The tokenizer's names for it are asked only about datasets of others, and about merged ones
    whose parts end in several ways.
    """
    manifest = matching_manifest(source)
    end = None if manifest is None else manifest.get("end_of_document")
    if manifest is None or (end is None and "made_by" in manifest):
        return infill
    return infill._replace(end_of_document=end)
