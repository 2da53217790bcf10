"""Everything about the data that can be known to be wrong before a process starts."""

from collections.abc import Iterator
from typing import Any

from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import OptionError, UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Check, Problem, findings
from megatron_gptx.data.build import build_datasets
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.verify import Expected, quick_problems
from megatron_gptx.tokenizer.build import load_tokenizer

_REMEDY = "raise model.vocab_size above it, or use the dataset of this model's tokenizer"


def dataset_problems(config: Config) -> Iterator[Problem]:
    """Yield everything that is wrong with the data of a run.

    Files are opened and validated, every part must hold at least one sample, the tokenizer must
    exist and be the one that the datasets were made with, and no id may lie outside the model's
    vocabulary. The largest id is taken from the dataset's manifest; without one, 4 million tokens
    spread over the file are read, and the loader looks at every other one as it comes.
    """
    return findings(_Examination(config).checks())


class _Examination:
    """The checks of one configuration's data; later ones use what earlier ones have opened."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tokenizer_sha256: str | None = None
        self.opened: dict[tuple[str, ...], IndexedDataset] = {}
        self.all_open = True

    def checks(self) -> tuple[Check, ...]:
        return (
            self._train_is_set,
            self._open_train,
            self._open_valid,
            self._open_labels,
            self._tokenizer,
            self._contents,
            self._samples,
        )

    def _train_is_set(self) -> Iterator[Problem]:
        if self.config.data.train is None:
            self.all_open = False
            yield Problem(
                "data.train",
                "is not set: give the prefix of a tokenised dataset, or several with weights",
            )

    def _open_train(self) -> Iterator[Problem]:
        return self._open(("data", "train"), self.config.data.train)

    def _open_valid(self) -> Iterator[Problem]:
        valid, named = self.config.data.valid, self.config.data.valid_sets
        if "" in named:
            yield from self._open(("data", "valid"), valid)
        elif isinstance(valid, dict):
            for name, blend in valid.items():
                yield from self._open(("data", "valid", name), blend)

    def _open(self, option: tuple[str, ...], blend: Any) -> Iterator[Problem]:
        """Open a dataset, or several with weights, and yield those that cannot be opened."""
        several = isinstance(blend, dict)
        for prefix in blend if several else [blend] if blend is not None else []:
            key = (*option, prefix) if several else option
            try:
                self.opened[key] = IndexedDataset(prefix)
            except UserError as error:
                self.all_open = False
                yield Problem(key, str(error))

    def _open_labels(self) -> Iterator[Problem]:
        for prefix, labels in self.config.data.labels.items():
            try:
                IndexedDataset(labels)
            except UserError as error:
                self.all_open = False
                yield Problem(("data", "labels", prefix), str(error))

    def _tokenizer(self) -> Iterator[Problem]:
        name = self.config.data.tokenizer
        if name is None:
            return
        try:
            tokenizer = load_tokenizer(name)
        except UserError as error:
            yield Problem("data.tokenizer", str(error))
            return
        self.tokenizer_sha256 = tokenizer.fingerprint
        needed, given = tokenizer.vocab_size, self.config.model.vocab_size
        if needed > given:
            yield Problem(
                "model.vocab_size",
                f"{given} is too small for the {needed} ids of data.tokenizer {name}; set it to at "
                f"least {needed}",
            )

    def _contents(self) -> Iterator[Problem]:
        expected = Expected(self.config.model.vocab_size, self.tokenizer_sha256, _REMEDY)
        for key, dataset in self.opened.items():
            try:
                yield from (Problem(key, text) for text in quick_problems(dataset, expected))
            except UserError as error:  # of its manifest
                yield Problem(key, str(error))

    def _samples(self) -> Iterator[Problem]:
        """Build what the ranks will build: nothing may be too small, or lack a token."""
        if not self.all_open or any(findings(self.config.data.checks())):
            return  # what is missing, or contradicts itself, cannot be built
        data = self.config.data
        if (problem := self._build(data)) is None:
            return
        # Which part of it: the first one that cannot be built without the later ones.
        bare = data.model_copy(update={"labels": {}})
        if data.split is not None and self._build(bare):
            yield Problem("data.split", problem)
        elif self._build(bare.model_copy(update={"valid": None})):
            yield Problem("data.train", problem)
        else:
            yield Problem("data.valid" if self._build(bare) else "data.labels", problem)

    def _build(self, data: DataConfig) -> str | None:
        """Return why the datasets cannot be built, of which no option is to blame by itself."""
        seq_length, seed = self.config.model.seq_length, self.config.training.seed
        try:
            build_datasets(data, seq_length=seq_length, seed=seed)
        except OptionError:
            raise
        except UserError as error:
            return str(error)
        return None
