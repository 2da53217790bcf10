"""Inputs of every accepted kind, found and divided into units of work.

NAME.jsonl, also .gz and .zst, holds one JSON object per line; NAME.parquet holds rows; every other
file is one document. A folder stands for the files below it that match a glob.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.data.opening import COMPRESSED, InputFile, is_remote, remote_names, stat_input
from megatron_gptx.data.tables import DATASETS, dataset_version, divide_dataset, divide_parquet

DEFAULT_GLOBS = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.txt", "*.parquet")
UNIT_BYTES = 4 << 20  # fixed by the input alone: the number of workers must not show in the output

_UNREADABLE = "unreadable"

Kind = Literal["files", "lines", "stream", "parquet", "dataset"]


class Unit(NamedTuple):
    """A piece of the input that one worker reads at a time.

    `span` is, for `lines`, a range of bytes in which the lines begin; for `parquet`, a row group
    and its first row; for `dataset`, a range of rows. `files` are whole files, `stream` is all
    lines of a compressed one.
    """

    kind: Kind
    paths: tuple[str, ...]
    span: tuple[int, int] | None
    num_bytes: int
    first_of_file: bool = True


def find_files(
    inputs: Iterable[str], *, globs: Sequence[str] = DEFAULT_GLOBS, lists: Iterable[str] = ()
) -> list[InputFile]:
    """Return the inputs: those of folders and patterns sorted by path, then those of list files.

    Args:
        inputs: files, folders, patterns with wildcards, URLs, `datasets:NAME`.
        globs: patterns for the files of folders, matched with the name, or with the path below the
            folder where the pattern has a slash.
        lists: files with one path per line, relative to the current folder.

    Raises:
        UserError: something does not exist, cannot be read, or no file is found.
    """
    paths: list[str] = []
    found: list[InputFile] = []
    named = set()
    for given in inputs:
        if not given:
            raise UserError("an input has no name: an empty argument, or a comma too many")
        named.add(given)
        paths += _expand(given, globs)
    for name in lists:
        try:
            lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as a list of files: {why(error)}") from error
        paths += [line for line in lines if line.strip()]
    if not paths:
        raise UserError("no input files: name files or folders, or give a --list-file")
    for path in paths:
        try:
            found.append(dataset_version(path) if _is_dataset(path) else stat_input(path))
        except OSError as error:
            if path in named or not os.path.lexists(path):
                raise UserError(f"{path}: cannot be read: {why(error)}") from error
            # One of many: whoever reads it says what is wrong, and --on-error decides.
            found.append(InputFile(path, 0, _UNREADABLE))
    return found


def divide(files: Iterable[InputFile], *, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Return units of about equal size, in the order of the files.

    A compressed file cannot be entered in its middle, so it is one unit whatever its size.
    """
    units: list[Unit] = []
    group: list[str] = []
    group_bytes = 0
    for file in files:
        path, num_bytes, _ = file
        kind = "files" if file.version == _UNREADABLE else _kind(path)
        if kind == "lines" and is_remote(path) and num_bytes == 0:
            kind = "stream"  # a server that does not tell sizes cannot be read by ranges either
        if group and (kind != "files" or group_bytes + num_bytes > unit_bytes):
            units.append(Unit("files", tuple(group), None, group_bytes))
            group, group_bytes = [], 0
        if kind == "files":
            group.append(path)
            group_bytes += num_bytes
        elif kind == "stream":
            units.append(Unit(kind, (path,), None, num_bytes))
        else:
            units += _spans(kind, file, unit_bytes)
    if group:
        units.append(Unit("files", tuple(group), None, group_bytes))
    return units


def _spans(kind: Kind, file: InputFile, unit_bytes: int) -> Iterator[Unit]:
    spans: Iterable[tuple[tuple[int, int], int]]
    if kind == "lines":
        starts = range(0, file.num_bytes, unit_bytes)
        stops = [min(start + unit_bytes, file.num_bytes) for start in starts]
        spans = [((a, b), b - a) for a, b in zip(starts, stops, strict=True)]
    elif kind == "parquet":
        spans = divide_parquet(file)
    else:
        spans = divide_dataset(file, unit_bytes)
    for number, (span, num_bytes) in enumerate(spans):
        yield Unit(kind, (file.path,), span, num_bytes, number == 0)


def _kind(path: str) -> Kind:
    if _is_dataset(path):
        return "dataset"
    if path.endswith(".parquet"):
        return "parquet"
    if path.endswith(".jsonl"):
        return "lines"
    if path.endswith(COMPRESSED) and Path(path).stem.endswith(".jsonl"):
        return "stream"
    return "files"


def _is_dataset(path: str) -> bool:
    return path.startswith(DATASETS)


def _expand(given: str, globs: Sequence[str]) -> list[str]:
    if _is_dataset(given):
        return [given]
    if Path(given).is_dir():
        found = sorted(_walk(given, globs), key=lambda path: Path(path).parts)
        if not found:
            raise UserError(f"{given}: no file below it matches {' or '.join(globs)}; use --glob")
        return found
    wildcards = r"[*\[]" if is_remote(given) else r"[*?\[]"  # a URL's ? begins its query
    if not re.search(wildcards, given) or os.path.lexists(given):
        return [given]
    matched = (
        remote_names(given)
        if is_remote(given)
        else sorted(p for p in glob(given, recursive=True) if not Path(p).is_dir())  # noqa: PTH207
    )
    if not matched:
        raise UserError(f"{given}: no file matches")
    return matched


def _walk(folder: str, globs: Sequence[str]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for here, _, names in os.walk(folder, onerror=fail):  # follows no links, so it ends
        below = os.path.relpath(here, folder)
        for name in names:
            inside = os.path.normpath(os.path.join(below, name))  # noqa: PTH118 - a million of them
            if any(fnmatch(inside if "/" in each else name, each) for each in globs):
                yield os.path.join(here, name)  # noqa: PTH118
