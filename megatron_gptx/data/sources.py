"""Raw text of every accepted kind, as units of work that each give some documents.

A file NAME.jsonl holds one JSON object per line; every other file is one document. A folder stands
for the files below it that match a glob.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, NamedTuple

from megatron_gptx.config.errors import UserError

DEFAULT_GLOBS = ("*.jsonl", "*.txt")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNIT_BYTES = 4 << 20  # fixed by the input alone: the number of workers must not show in the output
_SKIP_BLOCK = 1 << 20


class InputFile(NamedTuple):
    """A file as its user named it, with what tells whether it has changed since."""

    path: str
    num_bytes: int
    modified_ns: int


class Unit(NamedTuple):
    """The lines that begin in a byte range of one .jsonl file, or a few whole files."""

    paths: tuple[str, ...]
    lines: tuple[int, int] | None
    num_bytes: int


class Rejected(NamedTuple):
    """Input that gives no document. `line` counts from 1 in the unit; None means the whole file."""

    path: str
    line: int | None
    reason: str


@dataclass
class Account:
    """What reading one unit came upon.

    With `stop`, the first thing that would be rejected, or repaired by guessing, is an error.
    """

    stop: bool = False
    keep: int = 20
    num_lines: int = 0
    text_bytes: int = 0
    empty: int = 0
    repaired: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)  # the first `keep`

    def reject(self, path: str, line: int | None, reason: str) -> None:
        """Count a rejected line or file, and remember it if it is one of the first."""
        self.reasons[reason] += 1
        if len(self.rejected) < self.keep:
            self.rejected.append(Rejected(path, line, reason))


def find_files(
    inputs: Iterable[str], *, globs: Sequence[str] = DEFAULT_GLOBS, lists: Iterable[str] = ()
) -> list[InputFile]:
    """Return the input files: those of folders sorted by path, then those of list files.

    Args:
        inputs: files and folders.
        globs: patterns for the files of folders, matched with the name, or with the path below the
            folder where the pattern has a slash.
        lists: files with one path per line, relative to the current folder.

    Raises:
        UserError: something does not exist, cannot be read, or no file is found.
    """
    paths: list[str] = []
    for given in inputs:
        if Path(given).is_dir():
            found = sorted(_walk(given, globs), key=lambda path: Path(path).parts)
            if not found:
                raise UserError(
                    f"{given}: no file below it matches {' or '.join(globs)}; use --glob"
                )
            paths += found
        else:
            paths.append(given)
    for name in lists:
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as a list of files: {error}") from error
        paths += [line for line in lines if line.strip()]
    if not paths:
        raise UserError("no input files: name files or folders, or give a --list-file")
    files = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - the list may name a million files
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        files.append(InputFile(path, status.st_size, status.st_mtime_ns))
    return files


def divide(files: Iterable[InputFile], *, unit_bytes: int = _UNIT_BYTES) -> list[Unit]:
    """Return units of about equal size, in the order of the files."""
    units: list[Unit] = []
    group: list[str] = []
    group_bytes = 0
    for path, num_bytes, _ in files:
        is_lines = path.endswith(".jsonl")
        if group and (is_lines or group_bytes + num_bytes > unit_bytes):
            units.append(Unit(tuple(group), None, group_bytes))
            group, group_bytes = [], 0
        if is_lines:
            for start in range(0, num_bytes, unit_bytes):
                stop = min(start + unit_bytes, num_bytes)
                units.append(Unit((path,), (start, stop), stop - start))
        else:
            group.append(path)
            group_bytes += num_bytes
    if group:
        units.append(Unit(tuple(group), None, group_bytes))
    return units


def read_unit(unit: Unit, account: Account, *, json_key: str) -> Iterator[str]:
    """Yield the unit's texts, none of them empty, and keep account of everything else."""
    if unit.lines is None:
        for path in unit.paths:
            if (text := _read_file(path, account)) is not None:
                yield text
    else:
        yield from _read_lines(unit.paths[0], *unit.lines, account, json_key)


def count_lines(path: str, stop: int) -> int:
    """Return how many line ends the first `stop` bytes of a file hold."""
    count = 0
    with Path(path).open("rb") as file:
        while stop > 0 and (block := file.read(min(stop, _SKIP_BLOCK))):
            count += block.count(b"\n")
            stop -= len(block)
    return count


def _walk(folder: str, globs: Sequence[str]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for here, _, names in os.walk(folder, onerror=fail):  # follows no links, so it ends
        below = os.path.relpath(here, folder)
        for name in names:
            inside = os.path.normpath(os.path.join(below, name))  # noqa: PTH118 - a million of them
            if any(fnmatch(inside if "/" in glob else name, glob) for glob in globs):
                yield os.path.join(here, name)  # noqa: PTH118


def _read_file(path: str, account: Account) -> str | None:
    try:
        content = Path(path).read_bytes().removeprefix(_BYTE_ORDER_MARK)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Not repaired, as a line would be: a file that is not UTF-8 is mostly not text at all.
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"{error.strerror}"
        if account.stop:
            raise UserError(f"{path}: {reason}") from error
        account.reject(path, None, reason)
        return None
    if not text:
        account.empty += 1
        return None
    account.text_bytes += len(content)
    return text


def _read_lines(path: str, start: int, stop: int, account: Account, key: str) -> Iterator[str]:
    with Path(path).open("rb") as file:
        at = _next_line(file, start, stop)
        while at < stop and (line := file.readline()):
            account.num_lines += 1
            begin, at = at, at + len(line)
            if begin == 0:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            try:
                text, repaired = _parse(line, key)
                if repaired and account.stop:
                    raise ValueError("not UTF-8")
            except ValueError as error:
                if account.stop:
                    number = count_lines(path, begin) + 1
                    raise UserError(f"{path}:{number}: {error}") from None
                account.reject(path, account.num_lines, str(error))
                continue
            account.repaired += repaired
            if not text:
                account.empty += 1
                continue
            try:
                num_bytes = len(text.encode())
            except UnicodeEncodeError:  # an escape like \ud800 that is half a character
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                num_bytes = len(text.encode())
                account.repaired += 1
            account.text_bytes += num_bytes
            yield text


def _next_line(file: BinaryIO, start: int, stop: int) -> int:
    """Seek to the first line that begins in [start, stop) and return where, or stop."""
    if start == 0:
        return 0
    at = start - 1  # a line begins at `start` if the byte before ends one
    file.seek(at)
    while at < stop and (block := file.read(min(_SKIP_BLOCK, stop - at))):
        end = block.find(b"\n")
        if end >= 0:
            return file.seek(at + end + 1)
        at += len(block)
    return stop


def _parse(line: bytes, key: str) -> tuple[str, bool]:
    """Return a line's text, "" where it is blank, and whether broken UTF-8 was replaced.

    Raises:
        ValueError: what is wrong with the line.
    """
    if not line.strip():
        return "", False
    try:
        decoded, repaired = line.decode("utf-8"), False
    except UnicodeDecodeError:
        decoded, repaired = line.decode("utf-8", "replace"), True
    try:
        record = json.loads(decoded)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    if key not in record:
        raise ValueError(f"no key {key!r}")
    if not isinstance(record[key], str):
        raise ValueError(f"{key!r} is {_kind(record[key])}, not a string")
    return record[key], repaired


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
