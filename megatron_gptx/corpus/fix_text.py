"""ftfy, spared the lines that it would not change.

Its fixers look at one line at a time. Most lines hold nothing that any of them could touch, which a
regular expression sees many times faster; the result is ftfy's own, character by character.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Literal

Mode = Literal["full", "mojibake"]


def text_fixer(mode: Mode) -> Callable[[str], str]:
    """Return what repairs a text.

    Args:
        mode: `full` is ftfy.fix_text as it comes, which also rewrites quotes, entities and widths,
            and so changes code; `mojibake` undoes wrong decoding only.
    """
    import ftfy  # only where asked for: it takes longer to import than all the rest

    if mode == "full":
        config = ftfy.TextFixerConfig(explain=False)
        html_config = config
        config = config._replace(unescape_html=False)
        touched = _touched_characters()
        plain, html = re.compile(r"[^\t\n -~]"), re.compile(r"[^\t\n -%'-~]")
    else:
        config = html_config = ftfy.TextFixerConfig(
            unescape_html=False,
            remove_terminal_escapes=False,
            fix_c1_controls=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            fix_surrogates=False,
            remove_control_chars=False,
            normalization=None,
            explain=False,
        )
        touched = None
        plain = html = re.compile(r"[^\x00-\x7f]")

    def fix(text: str) -> str:
        if not html.search(text):
            return text
        fixed, suspect, current = [], html, html_config
        for line in _lines(text, config.max_decode_length):
            if "<" in line:  # from here on, an & is part of markup
                suspect, current = plain, config
            if suspect.search(line) and _needs_fixing(line, touched):
                fixed.append(ftfy.fix_text_segment(line, current))
            else:
                fixed.append(line)
        return "".join(fixed)

    return fix


def _lines(text: str, longest: int) -> Iterator[str]:
    """Yield the pieces that ftfy looks at."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        end = min(end, start + longest)
        yield text[start:end]
        start = end


def _needs_fixing(line: str, touched: "re.Pattern[str] | None") -> bool:
    from ftfy.badness import is_bad

    if is_bad(line):
        return True
    if touched is None:
        return False
    return bool(touched.search(line)) or not unicodedata.is_normalized("NFC", line)


def _touched_characters() -> "re.Pattern[str]":
    """Return a pattern of all characters that a fixer of single characters may change."""
    from ftfy import chardata

    tables: tuple[dict[int, Any], ...] = (
        chardata.LIGATURES,
        chardata.WIDTH_MAP,
        chardata.CONTROL_CHARS,
    )
    characters = {chr(number) for table in tables for number in table}
    listed = "".join(map(re.escape, sorted(characters)))
    single, double = chardata.SINGLE_QUOTE_RE.pattern, chardata.DOUBLE_QUOTE_RE.pattern
    return re.compile(f"[&\x1b\r\x7f-\x9f\u2028\u2029\ud800-\udfff{listed}]|{single}|{double}")
