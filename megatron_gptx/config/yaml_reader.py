"""YAML text to plain values that remember their lines.

Built on PyYAML's node composer instead of `yaml.load`, which keeps the last of two equal keys,
turns `off` into False, reads `3e-4` as a string and forgets where a value stood. Scalars follow the
YAML 1.2 core schema; nothing in a file can construct an object.
"""

import codecs
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megatron_gptx.config.shipped import shipped_names
from megatron_gptx.config.syntax import describe_syntax

# A configuration is a page of text; the bounds stop a wrong file, or one made of nested aliases
# that expands to billions of values, before it fills the memory.
MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 32

PLAIN_TAG = "plain"
TAG_PREFIX = "tag:yaml.org,2002:"

_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NAMED = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

# Control characters, line ends among them, and halves of a character.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """Where something was written: a file or a `--set`, and the line where there is one."""

    source: str
    line: int | None = None


class LocatedProblem(NamedTuple):
    """One mistake: where it stands, the option it concerns (empty: the whole source), and why."""

    place: Place
    path: KeyPath
    message: str


@dataclass
class Document:
    """Plain values, and the place of every key and list item."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[LocatedProblem] = field(default_factory=list)


class UnreadableError(Exception):
    """The source as a whole cannot be used."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.problem = LocatedProblem(place, (), message)


def read_file(path: Path) -> Document:
    """Return the values of a YAML file.

    Mistakes that leave the rest readable (a key given twice, a tag) are in `problems`.

    Raises:
        UnreadableError: there is no such file, or it is not a mapping in YAML.
    """
    source = str(path)
    text = _read_text(path)
    node = _compose(text, source)
    if node is None or (node.tag == PLAIN_TAG and parse_scalar(node.value) is None):
        raise UnreadableError(
            Place(source), "this file is empty; it should hold sections such as model:"
        )
    if not isinstance(node, yaml.MappingNode):
        raise UnreadableError(
            Place(source, node.start_mark.line + 1),
            f"the top level should be a mapping of sections such as model:, got {_kind(node)}",
        )
    document = Document()
    document.values = _Converter(document, source, with_lines=True).mapping(node, (), depth=1)
    return document


def read_override(text: str) -> Document:
    """Return the values of one `--set section.key=value`.

    Raises:
        UnreadableError: there is no '=', no key, or the value is not YAML.
    """
    place = Place(f"--set {text}")
    name, equals, value = text.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise UnreadableError(place, "expected section.key=value, such as training.steps=100")
    document = Document()
    path: KeyPath = ()
    inner = document.values
    for key in keys[:-1]:
        path = (*path, key)
        document.places[path] = place
        inner[key] = {}
        inner = inner[key]
    path = (*path, keys[-1])
    document.places[path] = place
    node = _compose(value, place.source)
    converter = _Converter(document, place.source, with_lines=False)
    inner[keys[-1]] = None if node is None else converter.value(node, path, depth=len(path))
    return document


def parse_scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means.

    As in YAML 1.2 `on`, `off`, `yes` and `no` are strings. A whole number written with an exponent
    (`1e8`, `1.5e6`) is an integer: an option that takes floats accepts it all the same, and one
    that counts, or DeepSpeed, wants no float.
    """
    if text in _NAMED:
        return _NAMED[text]
    # Python refuses to convert thousands of digits; as a float such a number is merely too large.
    if _INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    if _PREFIXED.fullmatch(text) and len(text) < 100:
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if "e" in text.lower() and abs(number) < 2**63 and number.is_integer():
            exact = Decimal(text)
            return int(exact) if exact == exact.to_integral_value() else number
        return number
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that looks like a misspelled `name`, if any does."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def _read_text(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnreadableError(Place(source), _missing_file(path)) from None
    except IsADirectoryError:
        raise UnreadableError(
            Place(source), "this is a directory; name a YAML file in it"
        ) from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UnreadableError(Place(source), f"cannot be read: {reason}") from None
    if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableError(
            Place(source), "this is a binary file, not text; name a YAML file with sections"
        )
    if len(data) > MAX_BYTES:
        raise UnreadableError(
            Place(source),
            f"this file is larger than {MAX_BYTES // 1024} KiB, which no configuration is; name a "
            "YAML file with sections",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x}; save the file as UTF-8"
        raise UnreadableError(Place(source, line), message) from None


def _missing_file(path: Path) -> str:
    # A relative path is relative to the folder in which the command runs.
    message = "no such file" if path.is_absolute() else f"no such file in {Path.cwd()}"
    try:
        names = [found for found in path.parent.iterdir() if found.suffix in {".yml", ".yaml"}]
    except (OSError, ValueError):
        names = []
    by_stem = {found.stem: found for found in names}
    if stem := closest(path.stem, by_stem) or closest(path.name, by_stem):
        return f"{message}; did you mean {by_stem[stem]}?"
    given = path.as_posix().removeprefix("configs/").removesuffix(".yml")
    if not path.is_absolute() and (shipped := closest(given, shipped_names())):
        return f"{message}; did you mean {shipped}, which comes with the package?"
    return message


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _NodeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not a text file: it holds the control character 0x{error.character:02x}"
        raise UnreadableError(_place(source, line), message) from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line, message = describe_syntax(error, text)
        raise UnreadableError(_place(source, line), message) from None
    except RecursionError:
        line = loader.line + 1  # where the parser gave up
        raise UnreadableError(_place(source, line), "values are nested too deeply") from None
    finally:
        loader.dispose()


def _place(source: str, line: int) -> Place:
    return Place(source) if source.startswith("--set ") else Place(source, line)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else repr(node.value[:40])


class _NodeLoader(yaml.SafeLoader):
    """Composes nodes only, and leaves it to `parse_scalar` what an unquoted scalar means."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return PLAIN_TAG if implicit[0] else f"{TAG_PREFIX}str"
        return f"{TAG_PREFIX}{'seq' if kind is yaml.SequenceNode else 'map'}"


def _joined(first: Any, second: Any) -> Any:
    """Return two mappings as one, the second one's values before the first one's."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    joined = dict(first)
    for key, value in second.items():
        joined[key] = _joined(first.get(key), value)
    return joined


class _Converter:
    """Turns nodes into values, noting places and problems in a document."""

    def __init__(self, document: Document, source: str, *, with_lines: bool) -> None:
        self.document, self.source, self.with_lines = document, source, with_lines
        self.num_values = 0

    def value(self, node: yaml.Node, path: KeyPath, *, depth: int) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            what = "nested too deeply" if depth > MAX_DEPTH else f"more than {MAX_VALUES} values"
            message = f"{what} once its aliases (*name) are written out"
            raise UnreadableError(self.place(node), message)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG_PREFIX}map":
            return self.mapping(node, path, depth=depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG_PREFIX}seq":
            return [self.item(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and (found := _NO_TEXT.search(node.value)):
            message = f"holds the character {found[0]!r}, which no path or name may hold"
            if node.style == '"':
                message += "; in double quotes a backslash begins an escape: use single quotes"
            self.problem(node, path, message)
            return None
        if isinstance(node, yaml.ScalarNode) and node.tag == PLAIN_TAG:
            return self.scalar(node, path)
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG_PREFIX}str":
            return node.value
        tag = node.tag.replace(TAG_PREFIX, "!!")
        self.problem(node, path, f"the tag {tag} is not allowed; write a plain value")
        return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath, *, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, path, f"a key should be a name, got {_kind(key_node)}")
                continue
            key = key_node.value
            inner = (*path, key)
            value = self.value(value_node, inner, depth=depth + 1)
            if key in values:
                first = f", first on line {lines[key]}" if self.with_lines else ""
                self.problem(key_node, inner, f"given twice{first}; keep one")
            lines[key] = key_node.start_mark.line + 1
            self.document.places[inner] = self.place(key_node)
            # Of a section given twice nothing is lost: its options would seem to be missing.
            values[key] = _joined(values.get(key), value)
        return values

    def item(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        self.document.places[path] = self.place(node)
        return self.value(node, path, depth=depth)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        value = parse_scalar(node.value)
        text = node.value if len(node.value) <= 40 else node.value[:37] + "..."
        if isinstance(value, float) and not math.isfinite(value):
            self.problem(node, path, f"should be a finite number, got {text}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            self.problem(node, path, f"should be a number of at most 64 bits, got {text}")
        return value

    def problem(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.document.problems.append(LocatedProblem(self.place(node), path, message))

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.with_lines else None)
