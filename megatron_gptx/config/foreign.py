"""Settings of GPT-NeoX and Megatron-LM, as they are written, each with its place."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.config.errors import ConfigError, why
from megatron_gptx.config.messages import report
from megatron_gptx.config.yaml_reader import (
    Place,
    UnreadableError,
    parse_scalar,
    read_file,
)

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-[^}]*)?\}|(\w+))")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)")


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
            settings[name] = Setting(name, _truth(value), document.places[keys])
    return settings


def read_megatron(paths: Sequence[Path]) -> dict[str, Setting]:
    """Return the `--name value` arguments in text files, such as a shell script, by name.

    Variables that a file itself sets are filled in. A flag without a value is True, one with
    several values a list. Values stand on the flag's line, or on lines that continue it.

    Raises:
        ConfigError: a file cannot be read.
    """
    settings: dict[str, Setting] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {why(error)}") from None
        name, variables = "", dict[str, str]()
        for number, line in enumerate(lines, 1):
            for place, word in enumerate(_words(line, variables)):
                if word.startswith("--"):
                    name, equals, value = word[2:].partition("=")
                    name = name.replace("-", "_")
                    values = [parse_scalar(value)] if equals else []
                    settings[name] = Setting(name, values, Place(str(path), number))
                elif word.endswith((".py", "[@]}")) or (place == 0 and word.startswith("$")):
                    name = ""  # the script, or a list of arguments, which is read where it is set
                elif name:
                    settings[name].value.append(parse_scalar(word))
            if not line.rstrip().endswith("\\"):
                name = ""
    return {name: found._replace(value=_plain(found.value)) for name, found in settings.items()}


def _leaves(
    values: dict[str, Any], outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*outer, key))
        else:
            yield (*outer, key), value


def _truth(value: Any) -> Any:
    # YAML 1.1, which they read, has more words for it.
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value, value) if isinstance(value, str) else value


def _words(line: str, variables: dict[str, str]) -> list[str]:
    """Return the words of a script's line that may belong to arguments; note what it assigns."""
    text = line.strip()
    if text.startswith("#"):
        return []
    assigned = _ASSIGNMENT.fullmatch(text)
    text = text.rstrip("\\")
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        # A quote that another line closes: its words are arguments all the same.
        words = text.partition(" #")[0].replace('"', " ").replace("'", " ").split()
        assigned = None
    filled = [_filled(word, variables) for word in words]
    if assigned and len(words) == 1 and "(" not in words[0]:
        variables[assigned[1]] = filled[0].partition("=")[2]
        return []
    # An argument list in quotes is a list of words.
    parts = [part.strip("()") for word in filled for part in word.split()]
    return [part for part in parts if part]


def _filled(text: str, variables: dict[str, str]) -> str:
    def fill(found: re.Match[str]) -> str:
        return variables.get(found[1] or found[2], found[0])

    return _VARIABLE.sub(fill, text)


def _plain(values: list[Any]) -> Any:
    if not values:
        return True
    return values[0] if len(values) == 1 else values
