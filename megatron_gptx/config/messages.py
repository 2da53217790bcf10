"""What a mistake is called: pydantic's findings and a report of them, in words for users."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megatron_gptx.config.errors import show
from megatron_gptx.config.options import walk_options, walk_sections
from megatron_gptx.config.section import Section
from megatron_gptx.config.yaml_reader import KeyPath, LocatedProblem, closest, parse_scalar


def report(problems: Sequence[LocatedProblem]) -> str:
    """Return one text for all problems: files before overrides, each file by line."""
    sources = list(dict.fromkeys(problem.place.source for problem in problems))
    sources.sort(key=lambda source: source.startswith("--set "))
    ordered = sorted(
        problems, key=lambda problem: (sources.index(problem.place.source), problem.place.line or 0)
    )
    if len(problems) == 1 and not problems[0].path and problems[0].place.line is None:
        return f"{problems[0].place.source}: {problems[0].message}"
    one_file = len(sources) == 1 and not sources[0].startswith("--set ")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    # What several files lack is written in none of them.
    verb = "have" if one_file and " + " in sources[0] else "has"
    lines = [f"{sources[0] if one_file else 'the configuration'} {verb} {count}:"]
    for problem in ordered:
        parts = []
        source, line = problem.place
        if one_file and line is not None:
            parts.append(f"line {line}")
        elif not one_file:
            parts.append(source if line is None else f"{source}, line {line}")
        if problem.path:
            parts.append(dotted(problem.path))
        lines.append("  " + ": ".join([*parts, problem.message]))
    return "\n".join(lines)


def dotted(path: KeyPath) -> str:
    """Return `model.attention.top_k`, with list positions as `betas[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def describe_error(error: ErrorDetails) -> str:
    """Return what is wrong with one value, given what pydantic found."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path = error["loc"]
    if kind == "extra_forbidden":
        return f"unknown key{_hint(path)}"
    if kind == "missing":
        return _missing(path)
    if kind == "value_error":
        return str(context["error"])
    return f"should be {_expected(kind, context, value)}, got {show(value)}{_remedy(kind, error)}"


# What pydantic's kinds of errors ask for.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, such as [1, 2]",
    "dict_type": "a mapping of options",
    "model_type": "a mapping of options",
    "finite_number": "a finite number",
}


def _expected(kind: str, context: dict[str, Any], value: Any) -> str:
    match kind:
        case "literal_error":
            return str(context["expected"])
        case "greater_than":
            return f"above {_number(context['gt'])}"
        case "greater_than_equal":
            return f"{_number(context['ge'])} or more"
        case "less_than":
            return f"below {_number(context['lt'])}"
        case "less_than_equal":
            return f"at most {_number(context['le'])}"
        case "too_short":
            return f"a list of at least {context['min_length']} values"
        case "too_long":
            return f"a list of at most {context['max_length']} values"
        case "string_too_short":
            return "text that is not empty"
        case "string_pattern_mismatch":
            return "a name or address without spaces and other special characters"
    assert kind in _EXPECTED, f"no words for the kind {kind!r} of error, found in {value!r}"
    return _EXPECTED[kind]


def _remedy(kind: str, error: ErrorDetails) -> str:
    value = error["input"]
    if kind == "literal_error" and isinstance(value, str):
        guess = closest(value, _strings(error["ctx"]["expected"]))
        return f"; did you mean '{guess}'?" if guess else ""
    if kind == "model_type" and value is None:
        return "; remove the empty section"
    if kind == "model_type" and isinstance(value, list) and value and isinstance(value[0], dict):
        return "; write its options without a dash"
    if kind == "list_type" and isinstance(value, str) and re.fullmatch(r"[-\d., ]+", value):
        return f"; write [{', '.join(re.findall(r'[-.0-9]+', value))}]"
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        if _is_number(value):
            return "; remove the quotes"
        plain = value.replace("_", "").replace(",", ".")
        return f"; write {plain}" if _is_number(plain) else ""
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {value:.0f}"
    if kind == "bool_type" and value in ("on", "off", "yes", "no"):
        return f"; write {'true' if value in ('on', 'yes') else 'false'}"
    if kind == "string_type" and value is not None and not isinstance(value, list | dict):
        return "; put it in quotes"
    return ""


def _is_number(text: str) -> bool:
    value = parse_scalar(text)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    """Return a bound as people write it: 10,000 and 1e-30."""
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{value:,.0f}" if whole else f"{value:g}"


def suggested_key(path: KeyPath) -> str | None:
    """Return the option of the same section that an unknown key seems to mean."""
    section = dict[KeyPath, type[Section]](walk_sections()).get(path[:-1])
    return closest(str(path[-1]), section.model_fields) if section else None


def _hint(path: KeyPath) -> str:
    key = str(path[-1])
    options = [option.path for option in walk_options()]
    sections = [section for section, _ in walk_sections() if section]
    if "." in key and tuple(key.split(".")) in options:
        *outer, name = key.split(".")
        return f"; dots are for --set: write {name!r} under {'.'.join(outer)!r}"
    if key == "<<":
        return "; merge keys are not supported: put shared options into a file of their own"
    if homes := [found[:-1] for found in (*options, *sections) if found[-1] == key]:
        names = [f"`{'.'.join(home)}`" if home else "the top level" for home in homes]
        return f"; `{key}` belongs to {' or '.join(names)}"
    if guess := suggested_key(path):
        return f"; did you mean {guess!r}?"
    # Of options with one name (top_k of attention and of generation) the first is meant.
    by_name = {found[-1]: found for found in reversed((*options, *sections))}
    if elsewhere := closest(key, by_name):
        return f"; did you mean {'.'.join(by_name[elsewhere])!r}?"
    return ""


def _missing(path: KeyPath) -> str:
    if section := dict[KeyPath, type[Section]](walk_sections()).get(path):
        names = [name for name, field in section.model_fields.items() if field.is_required()]
        some = ", ".join(names) or f"options, such as {next(iter(section.model_fields))}"
        return f"section is missing; it needs {some}"
    fields: dict[KeyPath, FieldInfo] = {option.path: option.field for option in walk_options()}
    field = fields.get(path)
    return "required option is missing" + (f": {field.description}" if field else "")


def _strings(expected: str) -> list[str]:
    # pydantic spells the allowed values as "'a', 'b' or 'c'".
    return expected.split("'")[1::2]
