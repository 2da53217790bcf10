"""The same files for the same Python, and no tests among them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool():
    path = ROOT / "tools" / "quickstart_corpus.py"
    spec = importlib.util.spec_from_file_location("quickstart_corpus", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tests_packages_and_other_files_are_left_out(tool, tmp_path):
    for name in (
        *("b.py", "a/x.py", "a.py", "a/test/y.py", "site-packages/z.py", "c.txt", "empty.py"),
        *("idlelib/idle_test/t.py", "a/__pycache__/x.py", "a/tests/x.py", "latin.py"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    found = [str(path.relative_to(tmp_path)) for path in tool.find_sources(tmp_path)]
    assert found == ["a/x.py", "a.py", "b.py"]


def test_every_20th_file_is_for_validation(tool):
    paths = [Path(str(i)) for i in range(50)]
    parts = tool.split(paths)
    assert parts["valid"] == [paths[19], paths[39]]
    assert sorted(parts["train"] + parts["valid"]) == sorted(paths)


def test_the_standard_library_is_divided_the_same_way_each_time(tool, tmp_path, capsys):
    assert tool.main(["--output", str(tmp_path / "q")]) == 0
    first = {path.name: path.read_text() for path in (tmp_path / "q").iterdir()}
    assert tool.main(["--output", str(tmp_path / "q")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "q").iterdir()} == first
    assert sorted(first) == ["train.list", "valid.list"]
    assert not set(first["train.list"].split("\n")[:-1]) & set(first["valid.list"].split("\n"))
    assert first["train.list"].endswith(".py\n")
    assert "train: " in capsys.readouterr().out
