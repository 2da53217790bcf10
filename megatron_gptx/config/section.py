"""The base of every configuration section."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from megatron_gptx.config.errors import OptionError, UserError


class Problem(NamedTuple):
    """What is wrong with an option that is valid by itself: the option to point at, and why.

    The key is `model.num_heads`, or its parts where one of them may hold a dot; empty where no
    option is to blame.
    """

    key: str | tuple[str, ...]
    message: str


Check = Callable[[], Iterable[Problem]]


class UnreadOptionError(Exception):
    """A check needs an option whose value could not be read, which has been reported already."""


class Section(BaseModel):
    """A group of options: immutable, strictly typed, closed to unknown keys.

    Strict means that the string "4" is not the number 4: the loader has already given every YAML
    scalar its type, so a mismatch is the user's mistake and is reported instead of repaired.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for contradictions between this section's own options.

        Keys are relative to the section. Each check stands alone: where some options could not be
        read, those checks still run that need none of them.
        """
        return ()

    # Hidden from type checkers, to which every name would seem to be an option.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise UnreadOptionError(name)
            return super().__getattr__(name)


def findings(checks: Iterable[Check]) -> Iterator[Problem]:
    """Yield what all checks find, or are ended by; those that need an unread option are left out.

    Raises:
        Exception: a check raises something else than a user's mistake.
    """
    for check in checks:
        try:
            yield from check()
        except UnreadOptionError:
            continue
        except OptionError as error:
            yield Problem(error.key, error.message)
        except UserError as error:
            yield Problem("", str(error))
