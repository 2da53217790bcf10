"""YAML files and `--set` overrides to one checked `Config`, or all that is wrong with them."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.messages import describe_error, report, suggested_key
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Section
from megatron_gptx.config.shipped import find_config
from megatron_gptx.config.yaml_reader import (
    Document,
    KeyPath,
    LocatedProblem,
    Place,
    UnreadableError,
    read_file,
    read_override,
)


class Loaded(NamedTuple):
    """A configuration, and for every option (`model.num_layers`) where its value came from.

    A source is `FILE:LINE`, `--set` or `default`.
    """

    config: Config
    sources: dict[str, str]


def load(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that files and overrides make together.

    A name that is no file here may be that of a shipped configuration: `configs/1B.yml`, or `1B`.
    Files are merged left to right: mappings key by key, everything else is replaced. Overrides of
    the form `section.key=value`, the value in YAML, win over all files.

    Raises:
        ConfigError: anything is wrong; the message holds all problems, each with its line.
    """
    return load_with_sources(paths, overrides).config


def load_with_sources(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Loaded:
    """Return the configuration as `load` does, with the source of every option's value."""
    if not paths:
        raise ConfigError("name at least one configuration file, such as configs/quickstart.yml")
    document = _merge(_read_all(paths, overrides))
    try:
        config = Config.model_validate(document.values)
    except ValidationError as error:
        raise ConfigError(report(_with_validation(error, document, paths))) from None
    problems = list(document.problems)
    reported = {problem.path for problem in problems}
    for key, message in _contradictions(config):
        path = tuple(key.split("."))
        if path in reported:
            continue  # its value could not be read
        problems.append(LocatedProblem(_find_place(path, document, paths), path, message))
    if problems:
        raise ConfigError(report(problems))
    return Loaded(config, _sources(document))


def _read_all(paths: Sequence[Path], overrides: Sequence[str]) -> list[Document]:
    readers = [
        *(partial(read_file, find_config(Path(path))) for path in paths),
        *(partial(read_override, text) for text in overrides),
    ]
    documents: list[Document] = []
    unreadable: list[LocatedProblem] = []
    for read in readers:
        try:
            documents.append(read())
        except UnreadableError as error:
            unreadable.append(error.problem)
    if unreadable:
        # Without this source its options would all seem to be missing: stop at what can be said.
        found = [problem for document in documents for problem in document.problems]
        raise ConfigError(report([*unreadable, *found]))
    return documents


def _merge(documents: Sequence[Document]) -> Document:
    merged = Document()
    for document in documents:
        _merge_mapping(merged, document, merged.values, document.values, ())
        merged.problems.extend(document.problems)
    return merged


def _merge_mapping(
    into: Document, other: Document, ours: dict[str, Any], theirs: dict[str, Any], path: KeyPath
) -> None:
    for key, value in theirs.items():
        inner = (*path, key)
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            _merge_mapping(into, other, ours[key], value, inner)
            continue
        ours[key] = value
        for old in [place for place in into.places if place[: len(inner)] == inner]:
            del into.places[old]
        into.places.update(
            {new: place for new, place in other.places.items() if new[: len(inner)] == inner}
        )


def _with_validation(
    error: ValidationError, document: Document, paths: Sequence[Path]
) -> list[LocatedProblem]:
    problems = list(document.problems)
    reported = {problem.path for problem in problems}
    errors = error.errors(include_url=False)
    misspelled = _misspelled(errors)
    for found in errors:
        path = found["loc"]
        if path in reported or (found["type"] == "missing" and path in misspelled):
            continue
        place = _find_place(path, document, paths)
        problems.append(LocatedProblem(place, path, describe_error(found)))
    return problems


def _misspelled(errors: Sequence[ErrorDetails]) -> set[KeyPath]:
    """Return options that only seem to be missing: an unknown key beside them means them."""
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    return {(*path[:-1], suggested_key(path) or "") for path in unknown}


def _find_place(path: KeyPath, document: Document, paths: Sequence[Path]) -> Place:
    """Return where an option, or else the innermost section around it, is written."""
    for length in range(len(path), 0, -1):
        if place := document.places.get(path[:length]):
            return place
    return Place(str(paths[-1]) if len(paths) == 1 else " + ".join(map(str, paths)))


def _contradictions(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, message in section.problems():
        yield prefix + key, message
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _contradictions(value, f"{prefix}{name}.")


def _sources(document: Document) -> dict[str, str]:
    sources = {}
    for option in walk_options():
        place = document.places.get(option.path)
        if place is None:
            text = "default"
        elif place.line is None:
            text = "--set"
        else:
            text = f"{place.source}:{place.line}"
        sources[".".join(option.path)] = text
    return sources
