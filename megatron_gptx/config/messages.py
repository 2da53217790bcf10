"""What a mistake is called: pydantic's findings and a report of them, in words for users."""

from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megatron_gptx.config.options import walk_options, walk_sections
from megatron_gptx.config.section import Section
from megatron_gptx.config.yaml_reader import KeyPath, LocatedProblem, closest


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
    lines = [f"{sources[0] if one_file else 'the configuration'} has {count}:"]
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
    if kind == "literal_error":
        guess = closest(value, _strings(context["expected"])) if isinstance(value, str) else None
        hint = f"; did you mean '{guess}'?" if guess else ""
        return f"input should be {context['expected']}, got {show(value)}{hint}"
    if kind == "model_type":
        hint = "; remove the empty section" if value is None else ""
        return f"input should be a mapping of options, got {show(value)}{hint}"
    if kind == "dict_type":
        return f"input should be a mapping, got {show(value)}"
    if kind == "value_error":
        return str(context["error"])
    message = error["msg"][0].lower() + error["msg"][1:]
    if kind in {"too_short", "too_long"}:
        return message.replace(" after validation", "")
    hint = ""
    if kind == "bool_type" and value in ("on", "off", "yes", "no"):
        hint = "; use true or false"
    return f"{message}, got {show(value)}{hint}"


def show(value: Any) -> str:
    """Return a value as a user would write it, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
        return f"section is missing; it needs {', '.join(names)}"
    fields: dict[KeyPath, FieldInfo] = {option.path: option.field for option in walk_options()}
    field = fields.get(path)
    return "required option is missing" + (f": {field.description}" if field else "")


def _strings(expected: str) -> list[str]:
    # pydantic spells the allowed values as "'a', 'b' or 'c'".
    return expected.split("'")[1::2]
