"""The rules of the repository hold in every file of it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.budget import read_budgets

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "megatron_gptx"
SOURCES = {".py", ".cpp", ".cu", ".cuh", ".h"}
TEXTS = SOURCES | {".md", ".yml", ".yaml", ".toml", ".txt", ".sh", ".json", ".cfg", ""}
MAX_LINES = 400
MAX_CPU_SECONDS = 16 * 60  # eight minutes on two cores
WORKFLOWS = ("ci", "nightly", "release")
UNTRACKED = {".git", ".venv", ".whl", "runs", "data", "build", "wandb"}
# Test folders that stand for something else than one package.
OTHER_ROOMS = {
    "docker",
    "end_to_end",
    "faults",
    "gpu",
    "launches",
    "golden",
    "benchmarks",
    "packaging",
}


def list_files() -> list[Path]:
    """Return every file that is, or could be, committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not is_product(p.relative_to(ROOT))]
    else:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return sorted({p for p in paths if p.is_file() and not p.is_symlink()})


def is_product(path: Path) -> bool:
    """Tell whether a relative path is made by a command: the rule where there is no git."""
    made = ("__pycache__", "_cache", ".egg-info")
    return path.parts[0] in UNTRACKED or any(part.endswith(made) for part in path.parts)


FILES = list_files()
PYTHON = [p for p in FILES if p.suffix == ".py"]
DOCUMENTS = [p for p in FILES if p.suffix == ".md" and p.parent == ROOT / "docs"]
TREES = {p: ast.parse(p.read_text(encoding="utf-8"), str(p)) for p in PYTHON}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_with(pattern: str) -> Iterator[str]:
    """Yield `file:line: text` of every match in a text file."""
    found = re.compile(pattern)
    for path in FILES:
        if path.suffix not in TEXTS:
            continue
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if found.search(line):
                yield f"{name_of(path)}:{number}: {line.strip()[:120]}"


def forbidden_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each construct that no file may use."""
    calls = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    calls |= {"pickle.load", "pickle.loads", "dill.load", "dill.loads"}
    keywords = {("weights_only", False), ("shell", True), ("allow_pickle", True)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "except without a class"
        if not isinstance(node, ast.Call):
            continue
        if (called := ast.unparse(node.func)) in calls:
            yield node.lineno, called
        for keyword in node.keywords:
            value = keyword.value
            if isinstance(value, ast.Constant) and (keyword.arg, value.value) in keywords:
                yield node.lineno, f"{keyword.arg}={value.value}"


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    heads = re.findall(r"^([a-z][a-z0-9 -]*):(?!=| export)", text, flags=re.MULTILINE)
    return {target for head in heads for target in head.split()}


def commands_in(document: str) -> list[str]:
    """Return the command lines of a document's shell blocks, comments removed."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_no_source_file_is_longer_than_the_limit():
    lengths = {
        name_of(p): p.read_text(encoding="utf-8").count("\n") for p in FILES if p.suffix in SOURCES
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_every_python_file_starts_with_a_docstring():
    assert [name_of(p) for p, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_a_package_file_holds_its_docstring_only():
    extra = {}
    for path, tree in TREES.items():
        if path.name != "__init__.py":
            continue
        allowed = ["__version__"] if path == PACKAGE / "__init__.py" else []
        rest = [ast.unparse(node) for node in tree.body[1:]]
        if unexpected := [line for line in rest if line.split(" = ")[0] not in allowed]:
            extra[name_of(path)] = unexpected
    assert extra == {}


def test_no_file_is_named_after_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "args", "manager"}
    assert [name_of(p) for p in FILES if {p.stem, p.parent.name} & empty] == []


def test_no_file_uses_forbidden_code():
    found = [
        f"{name_of(p)}:{line}: {what}"
        for p, tree in TREES.items()
        for line, what in forbidden_code(tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    pass\nexcept:\n    pass",
        "eval('1')",
        "yaml.load(text)",
        "pickle.load(file)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_forbidden_code_is_recognised(code):
    assert len(list(forbidden_code(ast.parse(code)))) == 1


def test_no_file_names_a_path_of_one_machine():
    assert list(lines_with(r"(?<![\w.}])/(?:work|home|root|Users|mnt|scratch)/[\w.]")) == []


def test_no_file_names_the_host_of_a_package_index():
    assert list(lines_with(r"\b(?:pypi|pythonhosted|npmjs|debian|download\.pytorch)\.org\b")) == []


def test_every_todo_names_its_issue():
    assert list(lines_with(r"(?://|#).*\b(?:T[O]DO|F[I]XME)\b(?! \(#\d+\))")) == []


def test_no_test_is_an_expected_failure():
    marks = [
        name_of(p)
        for p, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"xfail", "flaky"}
    ]
    assert marks == []


def test_tests_mirror_the_packages():
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    folders = {
        p.relative_to(ROOT / "tests").parts[0] for p in PYTHON if p.is_relative_to(ROOT / "tests")
    }
    folders = {name for name in folders if not name.endswith(".py")}
    assert folders <= rooms | OTHER_ROOMS
    tested = {name for name in rooms if any(PACKAGE.joinpath(name).glob("[!_]*.py"))}
    assert tested <= folders, "packages without tests"


def test_every_test_file_has_a_budget_and_all_of_them_fit_into_one():
    tests = ROOT / "tests"
    files = {p.relative_to(tests).as_posix() for p in PYTHON if p.is_relative_to(tests)}
    budgets = read_budgets()
    assert set(budgets) == {name for name in files if name.rpartition("/")[2].startswith("test_")}
    assert sum(budgets.values()) <= MAX_CPU_SECONDS


def test_every_config_tells_editors_its_schema():
    configs = [p for p in FILES if p.is_relative_to(ROOT / "configs") and p.suffix == ".yml"]
    assert configs
    for path in configs:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
        assert schema, f"{name_of(path)} starts with {first!r}"
        assert (path.parent / schema[1]).resolve() == ROOT / "configs" / "schema.json"
    assert (ROOT / "configs" / "schema.json").is_file(), "run `make docs`"


def sentences_of(markdown: str) -> Iterator[str]:
    """Yield the sentences of a document, code taken out: of prose, lists, headings and cells."""
    text = re.sub(r"^```.*?^```$|^<!--.*?-->$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-|]|\d+\.)\s)|(?<=\|)\s", text):
        yield from re.split(r"[.!?]\W*\s", " ".join(block.split()))


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in DOCUMENTS)]
)
def test_a_reader_finds_short_sentences_and_lines(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    long = [s for s in sentences_of(text) if len(re.findall(r"\S*\w\S*", s)) > 25]
    assert long == [], "more than 25 words"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert [s for s in prose.splitlines() if len(s) > 100 and not s.startswith("|")] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_of_a_document_exists(document):
    used = {
        word
        for line in commands_in(document)
        if line.startswith("make ")
        for word in line.split()[1:]
    }
    assert used
    assert {word for word in used if "=" not in word} <= make_targets()


def test_every_file_that_the_readme_runs_or_links_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {m for m in re.findall(r"\]\(([^)#]+)", text) if "://" not in m}
    named = {
        w for line in commands_in("README.md") for w in line.split() if re.search(r"\.(py|yml)$", w)
    }
    optional = {"configs/my-cluster.yml"}
    missing = {n for n in linked | named if not (ROOT / n).is_file() and not (ROOT / n).is_dir()}
    assert {n for n in missing - optional if not n.startswith(("train.py", "generate.py"))} == set()


def ci_targets() -> list[str]:
    """Return what .ci/run makes unless it is told otherwise."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^targets=\(([a-z0-9 -]+)\)$", script, flags=re.MULTILINE)
    return listed.split()


def test_ci_runs_the_commands_of_the_readme():
    steps = {f"make {target}" for target in ci_targets()}
    readme, contributing = (
        {line for line in commands_in(name) if line.startswith("make ")}
        for name in ("README.md", "CONTRIBUTING.md")
    )
    assert readme <= steps <= readme | contributing


def test_workflows_pin_their_actions_and_run_the_ci_script_target_by_target():
    workflows = [ROOT / ".github" / "workflows" / f"{name}.yml" for name in WORKFLOWS]
    assert sorted(workflows) == sorted(workflows[0].parent.glob("*.yml"))
    jobs = [job for path in workflows for job in yaml.safe_load(path.read_text())["jobs"].values()]
    steps = [step for job in jobs for step in job["steps"]]
    unpinned = [
        s["uses"] for s in steps if "uses" in s and not re.search(r"@[0-9a-f]{40}$", s["uses"])
    ]
    assert unpinned == []
    commands = [step["run"] for step in steps if step.get("run", "").startswith(".ci/")]
    assert commands == [".ci/run ${{ matrix.target }}", ".ci/run test-extended", ".ci/run"]
    assert jobs[0]["strategy"]["matrix"]["target"] == ci_targets()


def pins_of(name: str) -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_every_dependency_is_pinned_inside_its_range(name):
    pins = pins_of(name)
    for wanted in dependencies():
        found = pins.get(canonicalize_name(wanted.name))
        assert found, f"{name} does not pin {wanted.name}: run `make lock`"
        for pin in found:
            (version,) = [s.version for s in pin.specifier]
            assert wanted.specifier.contains(version, prereleases=True), f"{pin} is not {wanted}"


def test_the_pinned_torch_and_deepspeed_are_those_that_were_measured():
    pins = pins_of("constraints.txt")
    assert str(pins["torch"][0].specifier) == "==2.13.0"
    assert str(pins["deepspeed"][0].specifier) == "==0.19.8"


def test_the_lowest_versions_are_those_that_the_project_names():
    pins = pins_of("constraints-lowest.txt")
    for wanted in dependencies():
        (lowest,) = [s.version for s in wanted.specifier if s.operator == ">="]
        (pin,) = pins[canonicalize_name(wanted.name)]
        (version,) = [s.version for s in pin.specifier]
        # 3.6.1 is the lowest 3.6 where 3.6.0 was withdrawn.
        assert SpecifierSet(f"=={lowest}.*").contains(version), f"{pin} is not the lowest"


def dependencies() -> list[Requirement]:
    """Return what pyproject.toml asks for, extras included, the project itself left out."""
    # Python 3.10 has no tomllib; the lists hold one quoted requirement each, and nothing else does.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    body = text.partition("\ndependencies = ")[2].partition("\n[project.scripts]")[0]
    lines = [line for line in body.splitlines() if not line.lstrip().startswith("#")]
    wanted = [Requirement(quoted) for quoted in re.findall(r'"([^"]+)"', "\n".join(lines))]
    assert len(wanted) > 15
    return [requirement for requirement in wanted if requirement.name != "megatron_gptx"]
