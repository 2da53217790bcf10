"""pyproject.toml names what the package imports: no more, so that an extra keeps its promise."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# PyTorch's compiler support imports the first, which PyTorch does not always bring, and runs the
# second; its writer of events imports the third.
BY_TORCH = {"setuptools", "ninja", "tensorboard"}
# docker/install.sh builds Apex; the other two are its extensions.
NOT_ON_AN_INDEX = {"apex", "amp_C", "fused_layer_norm_cuda"}
PARTS_OF_PYDANTIC = {"annotated-types", "pydantic-core"}


def named(heading: str) -> set[str]:
    """Return the distributions that a list of pyproject.toml names."""
    # Python 3.10 has no tomllib.
    start = re.search(rf"^{re.escape(heading)} = \[", TEXT, flags=re.MULTILINE)
    assert start, heading
    body = re.split(r"\](?:\n|$)", TEXT[start.end() :], maxsplit=1)[0]
    lines = [line for line in body.splitlines() if not line.lstrip().startswith("#")]
    quoted = re.findall(r'"([^"]+)"', "\n".join(lines))
    return {canonicalize_name(Requirement(text).name) for text in quoted}


def imported() -> dict[str, set[str]]:
    """Return the distributions that the package imports, each with the files that do."""
    known, found = packages_distributions(), {}
    for path in (ROOT / "megatron_gptx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules}:
                if module in sys.stdlib_module_names | NOT_ON_AN_INDEX | {"megatron_gptx"}:
                    continue
                for name in known.get(module, [module]):
                    found.setdefault(canonicalize_name(name), set()).add(path.name)
    return found


EXTRAS = ("gpu", "data", "hf")
IMPORTED = imported()


@pytest.mark.parametrize("extra", EXTRAS)
def test_some_file_imports_each_package_of_an_extra(extra):
    assert named(extra) - IMPORTED.keys() - BY_TORCH == set()


def test_some_file_imports_each_dependency():
    assert named("dependencies") - IMPORTED.keys() - BY_TORCH == set()


def test_every_package_that_is_imported_is_a_dependency_or_in_an_extra():
    promised = named("dependencies").union(*map(named, EXTRAS)) | PARTS_OF_PYDANTIC
    assert {name: files for name, files in IMPORTED.items() if name not in promised} == {}


def test_there_is_no_other_extra_but_that_of_the_developers():
    table = TEXT.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert set(re.findall(r"^(\w+) = \[", table, flags=re.MULTILINE)) == {*EXTRAS, "dev"}
