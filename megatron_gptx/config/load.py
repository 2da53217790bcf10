"""YAML files and `--set` overrides to one checked `Config`, or all that is wrong with them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.messages import describe_error, report, suggested_key
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.partial import partial_section
from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Problem, Section, findings
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


@dataclass(frozen=True)
class Draft:
    """Files and overrides as far as they could be read, and what is wrong with them so far.

    Attributes:
        config: the configuration without the options that could not be read: a check that needs
            one of those raises UnreadOptionError. None where a whole source could not be read.
        problems: what is wrong so far.
    """

    config: Config | None
    problems: tuple[LocatedProblem, ...]
    document: Document
    paths: Sequence[Path]

    def finish(self, more: Iterable[Problem] = ()) -> Loaded:
        """Return the configuration, if nothing is wrong with it.

        Raises:
            ConfigError: anything is wrong here or in `more`; the message holds all problems, each
                with its line.
        """
        problems = list(self.problems)
        reported = {problem.path for problem in problems}
        # Several checks may be ended by the same mistake.
        for key, message in dict.fromkeys(more):
            path = _parts(key)
            if path and path in reported:
                continue  # its value is wrong by itself
            problems.append(self._locate(path, message))
        if problems:
            # In the order of the command line.
            order = [str(path) for path in self.paths]
            problems.sort(
                key=lambda p: order.index(p.place.source) if p.place.source in order else len(order)
            )
            raise ConfigError(report(problems))
        assert self.config is not None, "a source that cannot be read is a problem"
        return Loaded(self.config, _sources(self.document))

    def _locate(self, path: KeyPath, message: str) -> LocatedProblem:
        return LocatedProblem(_find_place(path, self.document, self.paths), path, message)


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
    return draft(paths, overrides).finish()


def draft(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Draft:
    """Return what files and overrides make together, with all that is wrong in them.

    Raises:
        ConfigError: no file is named.
    """
    if not paths:
        raise ConfigError("name at least one configuration file, such as configs/quickstart.yml")
    documents, unreadable = _read_all(paths, overrides)
    document = _merge(documents)
    problems = [*unreadable, *document.problems]
    try:
        config, errors = Config.model_validate(document.values), []
    except ValidationError as error:
        config, errors = None, error.errors(include_url=False)
        problems += _with_places(errors, document, paths, lacks_sources=bool(unreadable))
    if unreadable:
        # Its options would seem to be missing, and those of others to contradict their defaults.
        return Draft(None, tuple(problems), document, paths)
    unread = {problem.path for problem in document.problems}
    unread |= {found["loc"] for found in errors} | _misspelled(errors)
    if config is None or unread:
        config = partial_section(Config, document.values, unread)
    found = Draft(config, tuple(problems), document, paths)
    reported = {problem.path for problem in problems}
    for key, message in _contradictions(config):
        path = _parts(key)
        if path not in reported:
            problems.append(found._locate(path, message))
    return replace(found, problems=tuple(problems))


def _read_all(
    paths: Sequence[Path], overrides: Sequence[str]
) -> tuple[list[Document], list[LocatedProblem]]:
    """Return what could be read, and why the rest could not."""
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
    return documents, unreadable


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


def _with_places(
    errors: Sequence[ErrorDetails],
    document: Document,
    paths: Sequence[Path],
    *,
    lacks_sources: bool,
) -> Iterator[LocatedProblem]:
    reported = {problem.path for problem in document.problems}
    misspelled = _misspelled(errors)
    for found in errors:
        path = found["loc"]
        missing = found["type"] == "missing"
        if path in reported or (missing and (lacks_sources or path in misspelled)):
            continue
        yield LocatedProblem(_find_place(path, document, paths), path, describe_error(found))


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


def _contradictions(section: Section, prefix: tuple[str, ...] = ()) -> Iterator[Problem]:
    for key, message in findings(section.checks()):
        yield Problem((*prefix, *_parts(key)), message)
    for name in type(section).model_fields:
        # Not by getattr: of what could not be read there is nothing to check.
        value = section.__dict__.get(name)
        if isinstance(value, Section):
            yield from _contradictions(value, (*prefix, name))


def _parts(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key.split(".")) if isinstance(key, str) and key else tuple(key)


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
