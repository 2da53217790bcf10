"""What is wrong with a text that is no YAML, in words for people who do not know its grammar."""

import re

import yaml

# PyYAML's descriptions, and what usually led to them. The group of a match may be used, and where
# the thing began that could not be read to its end.
_CAUSES = (
    (
        r"mapping values are not allowed",
        "a colon stands where none can: indent options alike, and put a text with ': ' in quotes",
    ),
    (
        r"expected <block end>, but found",
        "a sign or the indentation does not fit{behind}: options of a section start in one column",
    ),
    (
        r"could not find expected ':'",
        "an option is written as name: value, with a space behind the colon",
    ),
    (r"found character '(.+)' that cannot start any token", "a text with {0} first needs quotes"),
    (
        r"expected ',' or '([\]}}])'",
        "a comma or the closing {0} is missing{behind}",
    ),
    (
        r"found unexpected end of stream",
        "the closing quote is missing{behind}",
    ),
    (
        r"found undefined alias '(.+)'",
        "*{0} stands for an anchor &{0}, and there is none: a text with * first needs quotes",
    ),
    (
        r"expected alphabetic or numeric character",
        "& and * stand for anchors and aliases: a text with one of them first needs quotes",
    ),
    (
        r"found unknown escape character",
        "a backslash in double quotes begins an escape: use single quotes",
    ),
    (r"found duplicate anchor|incompatible YAML document|found duplicate YAML", "{problem}"),
)


def describe_syntax(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Return the line of a syntax error, and what is wrong there."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    start = error.context_mark.line + 1 if error.context_mark else line
    # PyYAML may notice a tab only at the colon behind it, or not call it by its name.
    lines = text.splitlines()[:line]
    tabs = [number for number, found in enumerate(lines, 1) if re.match(r" *\t", found)]
    problem = error.problem or ""
    if "'\\t'" in problem or (tabs and tabs[-1] == line):
        return line, "found a tab; YAML is indented with spaces"
    if isinstance(error, yaml.composer.ComposerError) and "single document" in (
        error.context or ""
    ):
        return line, "a second document starts here; keep one per file"
    if "could not find expected ':'" in problem:
        line = start  # it is missed only on the next line
    behind = f" behind what starts on line {start}" if start != line else ""
    for pattern, words in _CAUSES:
        if found := re.search(pattern, problem):
            return line, "not valid YAML: " + words.format(
                *found.groups(), behind=behind, problem=problem
            )
    parts = [part for part in (error.context, problem) if part]
    return line, f"not valid YAML: {', '.join(parts)}"
