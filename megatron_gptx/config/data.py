"""Where the tokens come from."""

import math
from collections.abc import Iterator

from pydantic import Field, field_validator

from megatron_gptx.config.section import Problem, Section


class DataConfig(Section):
    """Token datasets made by tools/preprocess_data.py."""

    train: str | None = Field(
        None, description="Prefix of the training dataset: PREFIX.bin and PREFIX.idx."
    )
    valid: str | None = Field(
        None, description="Prefix of the validation dataset; not together with `split`."
    )
    split: str | None = Field(
        None,
        description="Shares of `train`'s documents for training, validation and test, such as "
        "'969,30,1'; not together with `valid`.",
    )
    tokenizer: str | None = Field(
        None, description="tokenizer.json, for generation and for checking vocab_size."
    )
    prefetch: int = Field(
        2, ge=0, description="Steps a background thread reads ahead; 0 reads in line."
    )

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

    def problems(self) -> Iterator[Problem]:
        """Yield two contradicting ways of making a validation set."""
        if self.split is not None and self.valid is not None:
            yield Problem("split", "give either valid or split, not both")
