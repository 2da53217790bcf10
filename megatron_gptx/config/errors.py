"""What users are shown instead of a traceback."""

from json import JSONDecodeError
from typing import Any


class UserError(Exception):
    """A mistake its reader can mend: the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """One or more problems in a configuration, all reported at once."""


class OptionError(ConfigError):
    """An option whose value cannot be used; the launcher adds where it is written.

    Attributes:
        key: the option, `launch.hostfile`.
        message: why it cannot be used, and what to do.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def why(error: Exception) -> str:
    """Return why something failed, of a system's error without its number and its file."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, JSONDecodeError):
        return f"it is not JSON (line {error.lineno}, column {error.colno})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def describe(error: Exception) -> str:
    """Return what a user is shown of an error: of a system's, FILE: REASON."""
    file = error.filename if isinstance(error, OSError) else None
    return why(error) if file is None else f"{file}: {why(error)}"


def show(value: Any) -> str:
    """Return a value as a user would write it, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
