"""Units of input read as texts, with an account of everything that gave none."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import orjson

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.corpus.json_keys import find
from megatron_gptx.corpus.open_input import DAMAGE, is_compressed, is_remote, open_input
from megatron_gptx.corpus.parquet_and_hub import TableError, read_dataset, read_parquet
from megatron_gptx.corpus.sources import Unit

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SKIP_BLOCK = 1 << 20
_SHORTER = "it became shorter while it was read"
_LINE_SLACK = 1024  # what else a line with the longest document may hold
_LOOK_AHEAD = 1 << 26  # of a line, before it is known whether it is too long


class Reading(NamedTuple):
    """What decides which texts a unit gives."""

    json_key: str = "text"
    forbidden: frozenset[str] = frozenset()  # what no text may contain
    longest_bytes: int = 1 << 30
    fix: Callable[[str], str] | None = None  # what repairs a text before it is looked at further
    chat: Callable[[object], str] | None = None  # what makes a text of messages

    def text_of(self, value: object) -> str:
        """Return the text that a value is.

        Raises:
            ValueError: it is none.
        """
        if self.chat is not None:
            return self.chat(value)
        if not isinstance(value, str):
            raise ValueError(f"{self.json_key!r} is {_kind(value)}, not a string")
        return value


class Rejected(NamedTuple):
    """Input that gives no document. `line` counts from 1 in the unit; None means the whole file."""

    path: str
    line: int | None
    reason: str


@dataclass
class Account:
    """What reading one unit came upon. A row of a table counts as a line.

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

    def reject(
        self,
        path: str,
        reason: str,
        line: int | None = None,
        number: Callable[[], int] | None = None,
    ) -> None:
        """Count a rejected line or file, and remember it if it is one of the first.

        `number` gives the line in its whole file, where that is another one.

        Raises:
            UserError: this account stops at errors.
        """
        if self.stop:
            where = path if line is None else f"{path}:{number() if number else line}"
            raise UserError(f"{where}: {reason}")
        self.reasons[reason] += 1
        if len(self.rejected) < self.keep:
            self.rejected.append(Rejected(path, line, reason))

    def accept(self, text: str, reading: Reading) -> str | None:
        """Return the text as it shall be encoded, and count it, or None where it is empty.

        Raises:
            ValueError: why it is rejected.
        """
        if not text:
            self.empty += 1
            return None
        if text.isascii():
            num_bytes = len(text)
        else:
            try:
                num_bytes = len(text.encode())
            except UnicodeEncodeError:  # an escape like \ud800 that is half a character
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                num_bytes = len(text.encode())
                self.repaired += 1
        if num_bytes > reading.longest_bytes:
            raise ValueError(_too_long(reading))
        if reading.fix is not None:
            text = reading.fix(text)
        for token in reading.forbidden:
            if token in text:
                raise ValueError(f"spells out the special token {token!r}")
        self.text_bytes += num_bytes
        return text


def read_unit(unit: Unit, account: Account, reading: Reading) -> Iterator[str]:
    """Yield the unit's texts, none of them empty, and keep account of everything else."""
    try:
        yield from _read(unit, account, reading)
    except UserError:
        raise
    except Exception as error:
        if not is_remote(unit.paths[0]):
            raise
        # Each remote file system has errors of its own.
        what = f"cannot be read further: {type(error).__name__}: {error}"
        account.reject(unit.paths[0], what, account.num_lines + 1)


def _read(unit: Unit, account: Account, reading: Reading) -> Iterator[str]:
    path = unit.paths[0]
    if unit.kind == "files":
        for path in unit.paths:
            if (text := _read_file(path, account, reading)) is not None:
                yield text
    elif unit.kind == "json":
        yield from _read_json(path, account, reading)
    elif unit.kind in ("lines", "stream"):
        try:
            yield from _read_lines(path, unit.span, account, reading)
        except (OSError, *DAMAGE) as error:
            # All lines before the damage have been read.
            account.reject(path, f"cannot be read further: {why(error)}", account.num_lines + 1)
    else:
        assert unit.span is not None, unit
        first, last = unit.span
        if unit.kind == "parquet":
            rows, before = read_parquet(path, first, reading.json_key), last
        else:
            rows, before = read_dataset(path, first, last, reading.json_key), first
        try:
            yield from _read_rows(path, rows, before, account, reading)
        except (OSError, TableError) as error:
            account.reject(path, why(error))


def count_lines(path: str, stop: int) -> int:
    """Return how many line ends the first `stop` bytes of a file hold."""
    count = 0
    with open_input(path) as file:
        while stop > 0 and (block := file.read(min(stop, _SKIP_BLOCK))):
            count += block.count(b"\n")
            stop -= len(block)
    return count


def _read_file(path: str, account: Account, reading: Reading) -> str | None:
    try:
        content = _content(path, reading)
        if content[257:262] == b"ustar":
            raise ValueError("a tar archive, not a text; unpack it")
        try:
            text = content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
        except UnicodeDecodeError:
            # Not repaired, as a line would be: a file that is not UTF-8 is mostly not text at all.
            raise ValueError("not UTF-8") from None
        return account.accept(text, reading)
    except (OSError, ValueError, *DAMAGE) as error:
        account.reject(path, why(error))
        return None


def _content(path: str, reading: Reading) -> bytes:
    """Return what a file holds.

    Raises:
        ValueError: it is too long.
    """
    content = b""
    with open_input(path) as file:
        # What is not compressed tells its size before it takes memory.
        size = 0
        if not is_compressed(path):
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
        if size <= reading.longest_bytes:
            content = file.read(reading.longest_bytes + 1)
    if max(size, len(content)) > reading.longest_bytes:
        raise ValueError(_too_long(reading))
    return content


def _read_json(path: str, account: Account, reading: Reading) -> Iterator[str]:
    """Yield the texts of a file that is one JSON object, or a list of them."""
    try:
        value = json.loads(_content(path, reading).removeprefix(_BYTE_ORDER_MARK).decode("utf-8"))
    except RecursionError:
        account.reject(path, "nested too deeply")
        return
    except json.JSONDecodeError as error:
        account.reject(path, f"not JSON: {error.msg} in line {error.lineno}")
        return
    except UnicodeDecodeError:
        account.reject(path, "not UTF-8")
        return
    except (OSError, ValueError, *DAMAGE) as error:
        account.reject(path, why(error))
        return
    for record in value if isinstance(value, list) else [value]:
        account.num_lines += 1
        try:
            text = account.accept(_text_of(record, reading), reading)
        except ValueError as error:
            account.reject(path, str(error), account.num_lines)
            continue
        if text is not None:
            yield text


def _read_rows(
    path: str, rows: Iterator[object], before: int, account: Account, reading: Reading
) -> Iterator[str]:
    for value in rows:
        account.num_lines += 1
        try:
            text = account.accept(reading.text_of(value), reading)
        except ValueError as error:
            line = account.num_lines
            account.reject(path, str(error), line, lambda line=line: before + line)  # type: ignore[misc]
            continue
        if text is not None:
            yield text


def _read_lines(
    path: str, span: tuple[int, int] | None, account: Account, reading: Reading
) -> Iterator[str]:
    limit = reading.longest_bytes + _LINE_SLACK
    with open_input(path) as file:
        at, stop = (_next_line(file, *span), span[1]) if span else (0, None)
        while (stop is None or at < stop) and (line := file.readline(_LOOK_AHEAD)):
            account.num_lines += 1
            begin, at = at, at + len(line)
            try:
                if len(line) == _LOOK_AHEAD and not line.endswith(b"\n"):
                    line, num_bytes = _read_rest(file, line, limit, seekable=span is not None)
                    at = begin + num_bytes
                    if num_bytes > limit:
                        raise ValueError(_too_long(reading))
                text, repaired = _parse(line, reading)
                if repaired and account.stop:
                    raise ValueError("not UTF-8")
                account.repaired += repaired
                accepted = account.accept(text, reading)
            except ValueError as error:
                number = (lambda: count_lines(path, begin) + 1) if span else None  # noqa: B023
                account.reject(path, str(error), account.num_lines, number)
                continue
            if accepted is not None:
                yield accepted
    if stop is not None and at < stop:
        raise EOFError(_SHORTER)


def _next_line(file: BinaryIO, start: int, stop: int) -> int:
    """Seek to the first line that begins in [start, stop) and return where, or stop."""
    if start == 0:
        return 0
    at = start - 1  # a line begins at `start` if the byte before ends one
    file.seek(at)
    while at < stop:
        block = file.read(min(_SKIP_BLOCK, stop - at))
        if not block:
            raise EOFError(_SHORTER)
        end = block.find(b"\n")
        if end >= 0:
            return file.seek(at + end + 1)
        at += len(block)
    return stop


def _read_rest(file: BinaryIO, line: bytes, limit: int, *, seekable: bool) -> tuple[bytes, int]:
    """Return a whole line that begins as given, cut off soon after `limit`, and its true size.

    Where the file can be read twice, a line above the limit takes no memory.
    """
    pieces, size = [line], len(line)
    while rest := file.readline(_SKIP_BLOCK):
        size += len(rest)
        if size <= limit and not seekable:
            pieces.append(rest)
        if rest.endswith(b"\n"):
            break
    if size <= limit and seekable:
        file.seek(len(line) - size, os.SEEK_CUR)
        pieces.append(file.read(size - len(line)))
    return b"".join(pieces), size


def _parse(line: bytes, reading: Reading) -> tuple[str, bool]:
    """Return a line's text, "" where it is blank, and whether broken UTF-8 was replaced.

    Raises:
        ValueError: what is wrong with the line.
    """
    try:
        text = find(orjson.loads(line), reading.json_key)
        if reading.chat is not None or type(text) is str:
            return reading.text_of(text), False
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        pass  # said below, and some of it can be read all the same
    line = line.removeprefix(_BYTE_ORDER_MARK).strip()
    if not line:
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
    return _text_of(record, reading), repaired


def _text_of(record: object, reading: Reading) -> str:
    """Return the text of a record.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    try:
        value = find(record, reading.json_key)
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"no key {reading.json_key!r}") from None
    return reading.text_of(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes"}
    return "null" if value is None else names.get(type(value), "a number")


def _too_long(reading: Reading) -> str:
    return f"longer than {reading.longest_bytes:,} bytes; raise --longest-document"
