"""Skipping lines that ftfy would not change is exact."""

# ruff: noqa: RUF001 - the strange characters are the point

import random

import ftfy
import pytest

from megatron_gptx.corpus.fix_text import text_fixer

MOJIBAKE_ONLY = {
    "unescape_html": False,
    "remove_terminal_escapes": False,
    "fix_c1_controls": False,
    "fix_latin_ligatures": False,
    "fix_character_width": False,
    "uncurl_quotes": False,
    "fix_line_breaks": False,
    "fix_surrogates": False,
    "remove_control_chars": False,
    "normalization": None,
}
OPTIONS = {"full": {}, "mojibake": MOJIBAKE_ONLY}
PIECES = [
    *("plain text", "x = 1  # code", "\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x85", "\u2028"),
    *("&", "&amp;", "&eacute;", "&#39;", "<b>", "<", "\x1b[31m", "\x00", "\x7f", "\x9d", "\ufeff"),
    *(
        "schÃ¶n",
        "âœ” no",
        "doesnâ€™t",
        "\u201cquoted\u201d",
        "it\u2019s",
        "\ufb01n",
        "ＷＩＤＥ",
        "\u0133",
    ),
    *(
        "e\u0301",
        "é",
        "漢字かな",
        "\u00a0",
        "\u3000",
        "\ufffd",
        "\ud83d\ude00",
        "\ud800",
        "\U0001f600",
    ),
    *("Ã", "Â ", "à la", "voilÃ le", "ï»¿", "\u202e", "ñandú", "Москва", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ﾊﾝｶｸ"),
]


def strings():
    draw = random.Random(7)
    for _ in range(6000):
        yield "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 8)))
    for _ in range(3000):
        limit = draw.choice((0x80, 0x180, 0x2100, 0x10000, 0x110000))
        yield "".join(chr(draw.randrange(limit)) for _ in range(draw.randint(1, 20)))


@pytest.mark.parametrize("mode", ["full", "mojibake"])
def test_every_string_becomes_what_ftfy_makes_of_it(mode):
    fix = text_fixer(mode)
    changed = 0
    for text in strings():
        expected = ftfy.fix_text(text, **OPTIONS[mode])
        assert fix(text) == expected, ascii(text)
        changed += expected != text
    assert changed > 300


@pytest.mark.parametrize("mode", ["full", "mojibake"])
def test_very_long_lines_are_cut_where_ftfy_cuts_them(mode):
    text = "a" * 999_998 + "schÃ¶n" * 3 + "&amp;"
    assert text_fixer(mode)(text) == ftfy.fix_text(text, **OPTIONS[mode])


def test_mojibake_mode_leaves_code_alone():
    code = 's = "&amp; \u201cquoted\u201d ﬁ"\r\n'
    assert text_fixer("mojibake")(code) == code
    assert text_fixer("full")(code) != code


def test_lines_that_need_nothing_never_reach_ftfy(monkeypatch):
    fix = text_fixer("full")

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(ftfy, "fix_text_segment", fail)
    for text in ("x = 1\n\ty\n", "if (a && b) <p>\n a & b", "naïve café\n漢字 Москва"):
        assert fix(text) == text
