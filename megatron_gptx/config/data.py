"""Where the tokens come from, and how documents become samples."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from megatron_gptx.config.errors import show
from megatron_gptx.config.paths import GivenPath, expand_given
from megatron_gptx.config.section import Check, Problem, Section

Packing = Literal["stream", "until_overflow", "document"]


def _expand_blend(blend: str | dict[str, float]) -> str | dict[str, float]:
    if isinstance(blend, str):
        return expand_given(blend)
    return {expand_given(prefix): weight for prefix, weight in blend.items()}


def _expand_named(valid: "Named") -> Any:
    """Expand the paths of a blend, or those of several blends with names."""
    if isinstance(valid, str) or not any(isinstance(v, str | dict) for v in valid.values()):
        return _expand_blend(valid)  # type: ignore[arg-type]
    return {name: _expand_blend(blend) for name, blend in valid.items()}  # type: ignore[arg-type]


def _expand_labels(labels: dict[str, str]) -> dict[str, str]:
    return {expand_given(prefix): expand_given(other) for prefix, other in labels.items()}


Blend = Annotated[str | dict[str, float], AfterValidator(_expand_blend)]
Named = str | dict[str, float | str | dict[str, float]]
Labels = Annotated[dict[str, str], AfterValidator(_expand_labels)]


class FillInTheMiddleConfig(Section):
    """Fill in the middle: training documents get their middle at the end (arXiv:2207.14255)."""

    rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the documents that are rearranged; 0 rearranges none.",
    )
    spm_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the rearranged documents whose suffix comes first (SPM). In the "
        "others the prefix comes first (PSM).",
    )
    prefix: str = Field("<|fim_prefix|>", description="Marker of data.tokenizer before the prefix.")
    middle: str = Field("<|fim_middle|>", description="Marker before the middle.")
    suffix: str = Field("<|fim_suffix|>", description="Marker before the suffix.")


class DataConfig(Section):
    """Token datasets made by `gptx preprocess`, and how they become samples."""

    train: Blend | None = Field(
        None,
        description="Prefix of the training dataset (PREFIX.bin and PREFIX.idx). Or a mapping of "
        "prefixes to weights: each dataset gives samples in proportion to its weight.",
    )
    valid: Annotated[Named, AfterValidator(_expand_named)] | None = Field(
        None,
        description="Prefix or weighted prefixes of the validation data. Or a mapping of names to "
        "such data, where each name gets its own loss: `{code: data/c, prose: "
        "{data/p: 1, data/q: 2}}`. Not together with `split`.",
    )
    split: str | None = Field(
        None,
        description="Shares of each training dataset's documents for training, validation and "
        "test, such as '969,30,1'. Not together with `valid`.",
    )
    labels: Labels = Field(
        default_factory=dict,
        description="Prefix of a dataset to the prefix of another one with the same lengths. The "
        "other dataset holds what to learn at each token: an id, or -100 for nothing.",
    )
    packing: Packing = Field(
        "stream",
        description="`stream` cuts consecutive documents into full samples. `until_overflow` "
        "fills each sample with whole documents while they fit. `document` gives each "
        "document its own sample. A document that is too long for one sample "
        "continues in the next one.",
    )
    isolate_documents: bool = Field(
        False,
        description="Document mask: attention and loss never cross from one document of a sample "
        "to the next.",
    )
    mask_document_ends: bool = Field(
        False,
        description="No loss for predicting a document's first token from the end of the document "
        "before it. `isolate_documents` includes this.",
    )
    fill_in_the_middle: FillInTheMiddleConfig = Field(default_factory=FillInTheMiddleConfig)
    tokenizer: GivenPath | None = Field(
        None,
        description="The tokenizer, named as for `gptx preprocess --tokenizer`: tokenizer.json, "
        "GPT-2's vocab.json (or VOCABULARY,MERGES), NAME.model, tiktoken's ranks, "
        "tekken.json, a folder, NAME[@REVISION] of the Hugging Face hub, or `bytes`. "
        "It serves generation, the check of vocab_size, and the ids of "
        "`fill_in_the_middle`.",
    )
    prefetch: int = Field(
        2,
        ge=0,
        le=100_000,
        description="Steps that a background thread reads ahead. Where a step has fewer than "
        "65,536 tokens, groups of 65,536 tokens count instead. 0 reads without a "
        "thread.",
    )

    @field_validator("valid", mode="before")
    @classmethod
    def _valid_is_a_blend_or_named_ones(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not any(
            isinstance(v, str | dict) for v in value.values()
        ):
            return cls._blend_is_a_prefix_or_weights(value)
        for name, blend in value.items():
            if not isinstance(blend, str | dict):
                raise ValueError(
                    f"either all values are weights, or all are datasets, but {name} is {blend!r}"
                )
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
                raise ValueError(
                    f"a name should be of letters, digits and _ . - only, got {name!r}"
                )
            cls._blend_is_a_prefix_or_weights(blend)
        return value

    @field_validator("train", mode="before")
    @classmethod
    def _blend_is_a_prefix_or_weights(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, dict):
            raise ValueError(
                f"should be the prefix of a dataset or a mapping of prefixes to weights, "
                f"got {show(value)}"
            )
        if not value:
            raise ValueError("a blend needs at least one dataset, such as {data/code: 0.5}")
        for prefix, weight in value.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 < weight < math.inf:
                raise ValueError(
                    f"the weight of {prefix} should be a number above 0, got {show(weight)}"
                )
        return value

    @field_validator("split")
    @classmethod
    def _split_is_three_shares(cls, split: str | None) -> str | None:
        if split is None:
            return None
        try:
            shares = [float(share) for share in split.split(",")]
        except ValueError:
            shares = []
        if len(shares) != 3 or not all(0 <= share < math.inf for share in shares) or not shares[0]:
            raise ValueError(
                f"split must be three shares such as '969,30,1', the first above 0, got {split!r}"
            )
        return split

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for contradictions, and for options that lack another one."""
        return self._split_or_valid, self._labels_have_datasets, self._infilling

    def _split_or_valid(self) -> Iterator[Problem]:
        if self.split is not None and self.valid is not None:
            yield Problem("split", "give either valid or split, not both")

    def _labels_have_datasets(self) -> Iterator[Problem]:
        known = {**self.train_weights, **self.valid_weights}
        for prefix in self.labels:
            if prefix not in known:
                yield Problem(
                    "labels",
                    f"{prefix} is a dataset of neither data.train nor data.valid; those are "
                    f"{', '.join(known) or 'not set'}",
                )

    def _infilling(self) -> Iterator[Problem]:
        if self.fill_in_the_middle.rate:
            if self.tokenizer is None:
                yield Problem(
                    "fill_in_the_middle.rate",
                    "needs data.tokenizer, for the ids of its tokens: set it",
                )
            if self.labels:
                yield Problem(
                    "fill_in_the_middle.rate",
                    "moves tokens, but data.labels stand for tokens in their place: use one of "
                    "the two",
                )

    @property
    def train_weights(self) -> dict[str, float]:
        """The training datasets and their weights; empty where there are none."""
        return _weights(self.train)

    @property
    def valid_sets(self) -> dict[str, dict[str, float]]:
        """Each validation set's datasets and their weights by its name; "" where it has none."""
        if not isinstance(self.valid, dict):
            return {} if self.valid is None else {"": _weights(self.valid)}
        named: dict[str, dict[str, float]] = {}
        weights: dict[str, float] = {}
        for name, value in self.valid.items():
            if isinstance(value, str | dict):
                named[name] = _weights(value)
            else:
                weights[name] = value
        return named or {"": weights}

    @property
    def valid_weights(self) -> dict[str, float]:
        """The datasets of all validation sets, and their weights; empty where there are none."""
        return {
            prefix: weight
            for weights in self.valid_sets.values()
            for prefix, weight in weights.items()
        }


def _weights(blend: Blend | None) -> dict[str, float]:
    if blend is None:
        return {}
    return {blend: 1.0} if isinstance(blend, str) else blend
