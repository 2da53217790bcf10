"""What an input holds, told by its content where its name leaves it open."""

from pathlib import Path
from typing import Literal

import orjson

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.open_input import (
    COMPRESSED,
    DAMAGE,
    Kind,
    is_compressed,
    is_remote,
    open_input,
)
from megatron_gptx.corpus.parquet_and_hub import DATASETS

Format = Literal["auto", "jsonl", "json", "text", "parquet"]

# The endings of files that hold documents, each of them also compressed.
ENDINGS = (".jsonl", ".ndjson", ".json", ".txt", ".parquet")
_LINES = (".jsonl", ".ndjson")
_HEAD_BYTES = 1 << 16
_LONG_LINES = 1 << 24  # looked at further, where there is an object whose end is not seen
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def ending_of(path: str) -> str:
    """Return the ending of an input's name in small letters, without that of its compression."""
    name = path.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return Path(name).suffix


def recognise(path: str, wanted: Format = "auto") -> Kind:
    """Return how an input is to be read.

    Names that end in .jsonl, .ndjson and .parquet are taken at their word, so that what is wrong
    with such a file is said. Everything else is looked into: JSON objects line by line are lines,
    another .json is one value, what begins like a parquet file is one, and the rest is text.
    """
    if path.startswith(DATASETS):
        return "dataset"
    fixed: dict[Format, Kind] = {"json": "json", "text": "files", "parquet": "parquet"}
    if wanted in fixed:
        return fixed[wanted]
    ending = ending_of(path)
    if ending == ".parquet" and wanted == "auto":
        return "parquet"
    try:
        if wanted == "jsonl" or ending in _LINES:
            return "stream" if is_compressed(path) else "lines"
        with open_input(path) as file:
            head = file.read(_HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK).lstrip()
            if head.startswith(b"{"):
                head += file.read(_LONG_LINES)
            whole = not file.read(1)
        if head.startswith(b"PAR1"):
            return "parquet"
        if _is_lines(head, whole=whole, alone=ending == ".json"):
            return "stream" if is_compressed(path) else "lines"
    except Exception as error:
        # Whoever reads the file finds out again, and says what is wrong with it. Each remote file
        # system has errors of its own.
        if not is_remote(path) and not isinstance(error, (OSError, UserError, *DAMAGE)):
            raise
        return "lines" if wanted == "jsonl" or ending in _LINES else "files"
    return "json" if ending == ".json" and head else "files"


def _is_lines(head: bytes, *, whole: bool, alone: bool) -> bool:
    """Tell whether what begins so holds a JSON object in every line.

    Args:
        head: its first bytes.
        whole: there are no others.
        alone: one object makes a line; elsewhere it may be a text that happens to be JSON.
    """
    lines = [line for line in head.split(b"\n") if line.strip()]
    num_needed = 1 if alone else 2
    for number, line in enumerate(lines[:num_needed], 1):
        if number == len(lines) and not whole:  # cut off
            return line.lstrip().startswith(b"{") and number == num_needed
        try:
            if not isinstance(orjson.loads(line), dict):
                return False
        except orjson.JSONDecodeError:
            return False
    return len(lines) >= num_needed
