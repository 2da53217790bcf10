"""What users are shown instead of a traceback."""


class UserError(Exception):
    """A mistake its reader can mend: the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """One or more problems in a configuration, all reported at once."""
