"""Keys of records, also of records inside records."""

from typing import Any


def find(record: Any, key: str) -> Any:
    """Return the value of a key; `a.b` is b inside a, unless a key is called `a.b` itself.

    Raises:
        KeyError, TypeError, IndexError: there is none.
    """
    if key in record:
        return record[key]
    for name in key.split("."):
        record = record[name]
    return record
