"""What users are shown instead of a traceback."""


class UserError(Exception):
    """A mistake its reader can mend: the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """One or more problems in a configuration, all reported at once."""


def why(error: Exception) -> str:
    """Return why something failed, of a system's error without its number and its file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def describe(error: Exception) -> str:
    """Return what a user is shown of an error: of a system's, FILE: REASON."""
    file = error.filename if isinstance(error, OSError) else None
    return why(error) if file is None else f"{file}: {why(error)}"
