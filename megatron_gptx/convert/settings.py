"""Settings of another tool, as they are written, each with its place."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.messages import report
from megatron_gptx.config.yaml_reader import Place, UnreadableError, parse_scalar, read_file

# Python, and YAML 1.1, which GPT-NeoX reads, take 220_000_000 for a number.
_UNDERSCORED = re.compile(r"[-+]?[0-9]+(_[0-9]+)+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


class Setting(NamedTuple):
    """One setting: its name in snake case, dots between levels, its value, and where it stands."""

    name: str
    value: Any
    place: Place

    @property
    def where(self) -> str:
        """`FILE:LINE`."""
        return f"{self.place.source}:{self.place.line}"


def read_neox(paths: Sequence[Path]) -> dict[str, Setting]:
    """Return the settings of GPT-NeoX's YAML files by name; later files win.

    Of a key given twice in one file the last counts, as it does there.

    Raises:
        ConfigError: a file cannot be read.
    """
    settings: dict[str, Setting] = {}
    for path in paths:
        try:
            document = read_file(path)
        except UnreadableError as error:
            raise ConfigError(report([error.problem])) from None
        problems = [problem for problem in document.problems if "tag" in problem.message]
        if problems:
            raise ConfigError(report(problems))
        for keys, value in _leaves(document.values, ()):
            name = ".".join(keys).replace("-", "_")
            settings[name] = Setting(name, _as_yaml_1_1(value), document.places[keys])
    return settings


def number_or_text(text: str) -> Any:
    """Return what a word means: a number, as Python reads numbers, a truth value, or itself."""
    return parse_scalar(text.replace("_", "") if _UNDERSCORED.fullmatch(text) else text)


def texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists, and the names in a mapping."""
    for item in list(value) if isinstance(value, list | dict) else [value]:
        if isinstance(item, list):
            yield from texts(item)
        elif isinstance(item, str):
            yield item


def _leaves(
    values: dict[str, Any], outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*outer, key))
        else:
            yield (*outer, key), value


def _as_yaml_1_1(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_yaml_1_1(item) for item in value]
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value.lower(), number_or_text(value)) if isinstance(value, str) else value
