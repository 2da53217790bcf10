"""The arguments that a shell script hands to Megatron-LM, read without running it.

Of the shell's language this knows words, quotes, comments, continued lines, lists in brackets,
variables with their defaults, and arithmetic. A command's output is not known, nor which branch of
an `if` or a `case` is taken.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_gptx.config.errors import ConfigError, why
from megatron_gptx.config.yaml_reader import MAX_BYTES, Place
from megatron_gptx.convert.arithmetic import evaluate
from megatron_gptx.convert.branches import CONDITIONS, Branches
from megatron_gptx.convert.settings import Setting, number_or_text

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?]")
_DEFAULT = re.compile(r"([A-Za-z_]\w*|[0-9]+)(:?[-=])")
_KEYWORDS = {"then", "do", "export", "local", "declare", "readonly", "time", "exec", "!"}
_LAUNCHERS = ("torchrun", "python", "python3", "deepspeed")
_HERE = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
# Between commands. A bracket that closes no list ends a pattern of `case`.
_SEPARATORS = "\n;|&)"

Text = list[tuple[str, int]]  # characters, each with its line


class Word(NamedTuple):
    """A word without its quotes, before its variables are filled in."""

    text: Text
    in_list: bool


def read_megatron(paths: Sequence[Path]) -> dict[str, Setting]:
    """Return the `--name value` arguments in shell scripts or text files, by name.

    A flag without a value is True, one with several values a list. Later files win, and see the
    variables of earlier ones. A `$` is left where no file sets a variable, or where branches of an
    `if` or a `case` give different values.

    Raises:
        ConfigError: a file cannot be read.
    """
    reader = _Reader()
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {why(error)}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: this is no script: it is not UTF-8 text") from None
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path}: this is no script: larger than {MAX_BYTES // 1024} KiB")
        try:
            reader.read(text, str(path))
        except RecursionError:
            raise ConfigError(f"{path}: its variables are nested too deeply") from None
    return reader.settings


class _Reader:
    def __init__(self) -> None:
        self.settings: dict[str, Setting] = {}
        self.variables: dict[str, str] = {}
        self.branches = Branches(self.variables)

    def read(self, text: str, source: str) -> None:
        self.source = source
        command: list[Word] = []
        for word in _words(text):
            if word is not None:
                command.append(word)
            elif command:
                self.command(command)
                command = []
        self.branches.close()

    def command(self, words: list[Word]) -> None:
        plain = ["".join(char for char, _ in word.text) for word in words]
        while plain and (plain[0] in _KEYWORDS or self.branches.note(plain[0])):
            if plain[0] in CONDITIONS:
                return
            words, plain = words[1:], plain[1:]
        if not words:
            return
        first = _ASSIGNMENT.match(plain[0])
        if first:
            for word, text in zip(words, plain, strict=True):
                if word.in_list:
                    continue
                if found := _ASSIGNMENT.match(text):
                    self.assign(found[1], bool(found[2]), word.text[found.end() :])
                else:
                    words = words[words.index(word) :]
                    self.arguments(words)  # `A=1 python pretrain_gpt.py ...`
                    return
            self.arguments([word for word in words if word.in_list])
        else:
            self.arguments(words)

    def assign(self, name: str, append: bool, text: Text) -> None:
        filled = self.fill(text)
        value = "".join(char for char, _ in filled)
        if re.search(r"(^|\s)--[A-Za-z]", value):
            # A list of arguments counts where it is made; where it is used it adds nothing.
            self.gather(_split(filled))
            value = ""
        self.variables[name] = self.variables.get(name, "") + value if append else value

    def arguments(self, words: list[Word]) -> None:
        """Read a list of arguments, or a command that runs a script of Python's."""
        if not words:
            return
        filled = [part for word in words for part in _split(self.fill(word.text))]
        names = ["".join(char for char, _ in part) for part in filled]
        scripts = [place for place, name in enumerate(names) if name.endswith(".py")]
        first = names[0] if names else ""
        launcher = first.rpartition("/")[2] in _LAUNCHERS
        if words[0].in_list or first.startswith("--") or launcher:
            self.gather(filled)
        elif scripts:
            # What stands before the script is for its launcher: srun has names of its own.
            self.gather(filled[scripts[0] :])
        elif words[0].text[:1] and words[0].text[0][0] == "$":
            self.gather(filled[1:])  # `$RUN --num-layers 2`: whatever starts the script

    def gather(self, words: list[Text]) -> None:
        """Note names and values in a list of arguments."""
        name, values, line = "", list[str](), 0
        for word in words:
            text = "".join(char for char, _ in word).strip("'\"")
            if re.match(r"--[A-Za-z]", text):
                self.add(name, values, line)
                name, equals, value = text[2:].partition("=")
                name, values, line = name.replace("-", "_"), [value] if equals else [], word[0][1]
            elif re.match(r"-[A-Za-z]|.*\.py$", text):  # `-m`, or the script itself
                self.add(name, values, line)
                name, values = "", []
                if other := re.fullmatch(r"(?:.*/)?(pretrain_(?!gpt)\w+\.py)", text):
                    self.add("script", [other[1]], word[0][1])
            elif text:
                values.append(text)
        self.add(name, values, line)

    def add(self, name: str, values: list[str], line: int) -> None:
        if not name:
            return
        found = [number_or_text(value) for value in values]
        value = True if not found else found[0] if len(found) == 1 else found
        known = self.settings.get(name)
        if known and self.branches.inside and known.value != value:
            value = f"${{{known.value}|{value}}}"
        self.settings[name] = Setting(name, value, Place(self.source, line))

    def fill(self, text: Text) -> Text:
        """Return a word with its variables filled in, those that are known."""
        filled: Text = []
        plain = "".join(char for char, _ in text)
        place = 0
        while place < len(text):
            char, line = text[place]
            if char != "$" or place + 1 == len(text):
                filled.append((char, line))
                place += 1
                continue
            length, value = self.expand(plain[place:])
            if value is None:  # it stays as it is, and one word
                value = "".join(plain[place : place + length].split())
            filled += [(char, line) for char in value]
            place += length
        return filled

    def expand(self, text: str) -> tuple[int, str | None]:
        """Return the length of the `$...` that a text begins with, and its value if it has one."""
        if text.startswith("$(("):
            end = _closing(text, 1)
            inner = "".join(
                char for char, _ in self.fill([(char, 0) for char in text[3 : end - 2]])
            )
            return end, evaluate(inner, self.variables)
        if text.startswith("$("):
            return _closing(text, 1), None
        if text.startswith("${"):
            end = _closing(text, 1)
            inner = text[2 : end - 1]
            if inner.endswith(("[@]", "[*]")):
                return end, ""  # a list, which counts where it is made
            if inner in self.variables:
                return end, self.variables[inner]
            default = _DEFAULT.match(inner)
            if default is None:
                return end, None
            known = self.variables.get(default[1])
            if known or (known is not None and ":" not in default[2]):
                return end, known
            rest = inner[default.end() :]
            if rest[:1] == rest[-1:] and rest[:1] in ("'", '"') and len(rest) > 1:
                rest = rest[1:-1]
            return end, "".join(char for char, _ in self.fill([(char, 0) for char in rest]))
        name = _NAME.match(text, 1)
        if name is None:
            return 1, "$"
        if name[0] in "@*":
            return 2, ""
        return name.end(), self.variables.get(name[0])


def _closing(text: str, start: int) -> int:
    """Return the place behind the bracket that closes the one at `start`."""
    opening = text[start]
    closing = {"(": ")", "{": "}"}[opening]
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == closing)
        if depth == 0:
            return place + 1
    return len(text)


def _split(text: Text) -> list[Text]:
    """Return the words of a text, as the shell splits what a variable holds."""
    words: list[Text] = [[]]
    for char, line in text:
        if char.isspace():
            words.append([])
        else:
            words[-1].append((char, line))
    return [word for word in words if word]


def _words(text: str) -> Iterator[Word | None]:
    """Yield words without their quotes, and None where a command ends."""
    word: Text = []
    started, in_list, quote = False, False, ""
    line, place = 1, 0
    while place < len(text):
        char, after = text[place], text[place + 1 : place + 2]
        step = 1
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and after == "\n":
                step = 2
            elif char == "\\" and quote == '"' and after in '"\\$`':
                word.append((after, line))
                step = 2
            else:
                word.append((char, line))
        elif char == "\\":
            if after != "\n":
                word.append((after, line))
                started = True
            step = 2
        elif char in "'\"":
            quote, started = char, True
        elif char == "$" and after in ("(", "{"):
            step = _closing(text, place + 1) - place
            # Quotes around a default are the default's own.
            word += [(each, line) for each in text[place : place + step]]
            started = True
        elif char == "`":
            end = text.find("`", place + 1)
            step = (len(text) if end < 0 else end + 1) - place
            word += [(each, line) for each in "$(command)"]
            started = True
        elif text.startswith(";;", place):
            if started:
                yield Word(word, in_list)
            word, started = [], False
            yield from (None, Word([(";", line), (";", line)], False), None)
            step = 2
        elif char == "<" and (here := _HERE.match(text, place)):
            last = re.compile(rf"^\t*{here[1]}$", re.MULTILINE).search(text, here.end())
            step = (last.end() if last else len(text)) - place
        elif char == "#" and not started:
            step = (text.find("\n", place) + 1 or len(text) + 1) - 1 - place
        elif char == "(" and not in_list and word and word[-1][0] == "=":
            yield Word(word, False)
            word, started, in_list = [], False, True
        elif char.isspace() or (char in _SEPARATORS and not (in_list and char != ")")):
            if started:
                yield Word(word, in_list)
            word, started = [], False
            if char == ")" and in_list:
                in_list = False
            elif char in _SEPARATORS and not in_list:
                yield None
        else:
            word.append((char, line))
            started = True
        line += text.count("\n", place, place + step)
        place += step
    if started:
        yield Word(word, in_list)
    yield None
