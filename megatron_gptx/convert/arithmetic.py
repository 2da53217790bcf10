"""What a shell makes of `$((A * B))`."""

import ast
import operator
import re
from collections.abc import Mapping

_SUM = re.compile(r"[\w\s()+*/%-]*", re.ASCII)
_MIXED = re.compile(r"\d[A-Za-z]")  # `8B` is neither a number nor a name
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def evaluate(text: str, variables: Mapping[str, str]) -> str | None:
    """Return the value of whole numbers and variables joined by + - * / %, or None."""
    if not _SUM.fullmatch(text) or _MIXED.search(text):
        return None
    try:
        return str(_value(ast.parse(text.strip(), mode="eval").body, variables))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr, variables: Mapping[str, str]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in variables:
        return int(variables[node.id])
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, variables), _value(node.right, variables)
        return int(_OPERATORS[type(node.op)](left, right))
    raise ValueError(ast.unparse(node))
