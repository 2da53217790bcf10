"""Every option does something: code outside the configuration reads it."""

import ast
from pathlib import Path

import pytest

from megatron_gptx.config.options import walk_options

PACKAGE = Path(__file__).resolve().parents[2] / "megatron_gptx"
CONFIG = PACKAGE / "config"


def attributes(tree: ast.AST) -> set[str]:
    """Return every `name` that is read as `something.name`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def properties() -> dict[str, set[str]]:
    """Return what each property of a section reads: reading `ffn_width` is reading its options."""
    return {
        node.name: attributes(node)
        for path in CONFIG.glob("*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        and any(
            isinstance(word, ast.Name) and word.id == "property" for word in node.decorator_list
        )
    }


def names_read() -> set[str]:
    sources = [path for path in PACKAGE.rglob("*.py") if CONFIG not in path.parents]
    read = set().union(*(attributes(parse(path)) for path in sources))
    derived = properties()
    while more := set().union(*(derived[name] for name in read & set(derived)), set()) - read:
        read |= more
    return read


READ = names_read()


@pytest.mark.parametrize("option", [".".join(path) for path, _ in walk_options()])
def test_the_option_is_read(option):
    name = option.rpartition(".")[2]
    assert name in READ, f"nothing in megatron_gptx reads .{name}: a dead option misleads its users"
