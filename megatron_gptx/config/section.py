"""The base of every configuration section."""

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Problem(NamedTuple):
    """A contradiction between options that are each valid: the option to point at, and why."""

    key: str
    message: str


class Section(BaseModel):
    """A group of options: immutable, strictly typed, closed to unknown keys.

    Strict means that the string "4" is not the number 4: the loader has already given every YAML
    scalar its type, so a mismatch is the user's mistake and is reported instead of repaired.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between this section's own options; keys are relative to it."""
        yield from ()
