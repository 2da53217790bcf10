"""Inputs of every accepted kind, found and divided into units of work.

A folder stands for the files below it that match a glob, or whose names end like documents.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from glob import glob
from pathlib import Path
from typing import NamedTuple

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.corpus.formats import ENDINGS, Format, ending_of, recognise
from megatron_gptx.corpus.open_input import InputFile, Kind, is_remote, remote_names, stat_input
from megatron_gptx.corpus.parquet_and_hub import (
    DATASETS,
    dataset_version,
    divide_dataset,
    divide_parquet,
)

UNIT_BYTES = 4 << 20  # fixed by the input alone: the number of workers must not show in the output

_UNREADABLE = "unreadable"


class Unit(NamedTuple):
    """A piece of the input that one worker reads at a time.

    `span` is, for `lines`, a range of bytes in which the lines begin; for `parquet`, a row group
    and its first row; for `dataset`, a range of rows. `files` are whole files, `stream` is all
    lines of a compressed one, `json` a file that is one JSON value.
    """

    kind: Kind
    paths: tuple[str, ...]
    span: tuple[int, int] | None
    num_bytes: int
    first_of_file: bool = True


def find_files(
    inputs: Iterable[str],
    *,
    globs: Sequence[str] = (),
    lists: Iterable[str] = (),
    wanted: Format = "auto",
    passed_over: list[str] | None = None,
) -> list[InputFile]:
    """Return the inputs: those of folders and patterns sorted by path, then those of list files.

    Args:
        inputs: files, folders, patterns with wildcards, URLs, `datasets:NAME`.
        globs: patterns for the files of folders, matched with the name, or with the path below the
            folder where the pattern has a slash. None takes the usual endings; of a folder that
            has lines or rows then only these, as a text beside them mostly speaks of them.
        lists: files with one path per line, relative to the current folder.
        wanted: how all files are read; `auto` looks into each.
        passed_over: is given the files of folders that are not taken.

    Raises:
        UserError: something does not exist, cannot be read, or no file is found.
    """
    paths: list[str] = []
    found: list[InputFile] = []
    named = set()
    others = [] if passed_over is None else passed_over
    kinds: dict[str, Kind] = {}  # of files that were looked into already
    for given in inputs:
        if not given:
            raise UserError("an input has no name: an empty argument, or a comma too many")
        named.add(given)
        if Path(given).is_dir():
            paths += _of_folder(given, globs, wanted, others, kinds)
        else:
            paths += _expand(given)
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
            file = dataset_version(path) if _is_dataset(path) else stat_input(path)
            kind = kinds.get(path) or recognise(path, wanted)
            found.append(file._replace(kind=kind))
        except OSError as error:
            if path in named or not os.path.lexists(path):
                raise UserError(f"{path}: cannot be read: {why(error)}") from error
            # One of many: whoever reads it says what is wrong, and --on-error decides.
            found.append(InputFile(path, 0, _UNREADABLE, "files"))
    return found


def divide(files: Iterable[InputFile], *, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Return units of about equal size, in the order of the files.

    A compressed file cannot be entered in its middle, so it is one unit whatever its size.
    """
    units: list[Unit] = []
    group: list[str] = []
    group_bytes = 0
    for file in files:
        path, num_bytes = file.path, file.num_bytes
        kind = file.kind or recognise(path)
        if kind == "lines" and is_remote(path) and num_bytes == 0:
            kind = "stream"  # a server that does not tell sizes cannot be read by ranges either
        if group and (kind != "files" or group_bytes + num_bytes > unit_bytes):
            units.append(Unit("files", tuple(group), None, group_bytes))
            group, group_bytes = [], 0
        if kind == "files":
            group.append(path)
            group_bytes += num_bytes
        elif kind in ("stream", "json"):
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


def _is_dataset(path: str) -> bool:
    return path.startswith(DATASETS)


def _of_folder(
    folder: str,
    globs: Sequence[str],
    wanted: Format,
    passed_over: list[str],
    kinds: dict[str, Kind],
) -> list[str]:
    """Return the files of a folder that are taken, sorted by path; the others are passed over.

    What is learned of their kinds on the way is put into `kinds`.
    """
    found: list[str] = []
    others: list[str] = []
    for inside, path in _walk(folder):
        name = Path(inside).name
        if globs:
            taken = any(fnmatch(inside if "/" in each else name, each) for each in globs)
        else:
            taken = ending_of(name) in ENDINGS
        (found if taken else others).append(path)
    if not found:
        what = " or ".join(globs or (f"*{ending}" for ending in ENDINGS))
        seen = f"; there are {len(others):,} others" if others else ""
        raise UserError(f"{folder}: no file below it matches {what}; use --glob{seen}")
    if not globs and wanted == "auto":
        kinds |= {path: recognise(path) for path in found}
        rows = {path for path in found if kinds[path] != "files"}
        if any(_can_be_read(path) for path in rows):
            others += [path for path in found if path not in rows]
            found = [path for path in found if path in rows]
    passed_over += sorted(others)
    return sorted(found, key=lambda path: Path(path).parts)


def _can_be_read(path: str) -> bool:
    try:
        stat_input(path)
    except OSError:
        return False
    return True


def _expand(given: str) -> list[str]:
    if _is_dataset(given):
        return [given]
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


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    """Yield each file's path inside the folder, and its whole path."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for here, _, names in os.walk(folder, onerror=fail):  # follows no links, so it ends
        below = os.path.relpath(here, folder)
        for name in names:
            inside = os.path.normpath(os.path.join(below, name))  # noqa: PTH118 - a million of them
            yield inside, os.path.join(here, name)  # noqa: PTH118
