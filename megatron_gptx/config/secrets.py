"""What secrets are called: those names have no place in a configuration or a command line."""

import re

_SECRET = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|secret_?key|private_?key|token|secret|passw(?:or)?d|passphrase"
    r"|credentials?|auth)(?:$|_)",
    re.IGNORECASE,
)


def names_secret(name: str) -> bool:
    """Return whether a variable or key of this name would hold a secret, such as WANDB_API_KEY."""
    return _SECRET.search(name) is not None
