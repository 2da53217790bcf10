"""The kernels are compiled once, by one process, and a failure says what the compiler said."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.ops.kernels.build import SOURCES, BuildError, ensure_built

ROOT = Path(__file__).resolve().parents[3]
GOOD = 'extern "C" int answer() { return 42; }\n'
BUILD = """
import sys
from pathlib import Path
from megatron_gptx.ops.kernels.build import ensure_built
print(ensure_built(lambda line: print(line, flush=True), sources=Path(sys.argv[1])))
"""


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """Return a folder with one small source, an empty cache beside it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "csrc"
    (folder / "cpu").mkdir(parents=True)
    (folder / "cpu" / "answer.cpp").write_text(GOOD)
    return folder


def python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a fresh interpreter that sees this repository."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=-2, text=True)


def test_what_is_built_is_found_again(sources, tmp_path, kernels):
    lines: list[str] = []
    library = ensure_built(lines.append, sources=sources)
    assert library.is_file()
    assert library.is_relative_to(tmp_path / "cache")
    assert len(lines) == 1
    assert f"building the kernels in {library.parent}, once" in lines[0]
    again: list[str] = []
    assert (ensure_built(again.append, sources=sources), again) == (library, [])
    (sources / "cpu" / "answer.h").write_text("// A header counts too.\n")
    assert ensure_built(lines.append, sources=sources) != library


def test_processes_that_come_together_build_once(sources, kernels):
    processes = [python("-c", BUILD, str(sources)) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(output.count("building the kernels") for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_a_build_that_died_holds_nobody_up(sources, kernels):
    library = ensure_built(print, sources=sources)
    (library.parent / "done").unlink()
    (library.parent / "lock").touch()
    process = python("-c", BUILD, str(sources))
    assert str(library) in process.communicate(timeout=60)[0]


def test_a_build_that_lasts_says_how_far_it_is(sources, tmp_path, monkeypatch, kernels):
    # A compiler that finishes one of two files, and the other when the line about that was said.
    (sources / "cpu" / "slow.cpp").write_text("int f() { return 1; }\n")
    said, compiler = tmp_path / "said", tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-c*slow.cpp*)\n'
        f"  until [ -e {said} ] || [ $((n += 1)) -gt 300 ]; do sleep 0.1; done;;\n"
        "esac\n"
        'exec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "1 of 2 files" in line:
            said.touch()

    ensure_built(say, sources=sources)
    assert any(re.fullmatch(r"kernels: 1 of 2 files compiled after \d+ s", x) for x in lines)


def test_a_failed_build_says_what_the_compiler_said(sources, kernels):
    (sources / "cpu" / "wrong.cpp").write_text("int f() { return nonsense; }\n")
    with pytest.raises(BuildError, match=r"wrong\.cpp:1:.*nonsense"):
        ensure_built(print, sources=sources)


def test_nothing_to_build_is_said(tmp_path):
    with pytest.raises(BuildError, match="no kernel sources in"):
        ensure_built(print, sources=tmp_path)


def test_a_cache_that_cannot_be_written_is_said(sources, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(BuildError, match="cannot be written"):
        ensure_built(print, sources=sources)


def test_a_machine_without_a_compiler_is_told_so(tmp_path):
    code = "from megatron_gptx.ops.kernels.library import load; print(load(print))"
    environment = {"CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    output = python("-c", code, **environment).communicate()[0]
    reason = output.splitlines()[-1]
    assert reason.startswith("the build failed: ")
    assert "no-such-compiler" in reason


def test_the_kernels_can_be_built_ahead_of_time(kernels):
    process = python("-m", "megatron_gptx.ops.kernels.build")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert Path(output.splitlines()[-1]).is_file()


def test_sources_that_ninja_would_confuse_do_not_exist():
    # Its object files lie in one folder, under the names of the sources.
    names = [path.stem for path in SOURCES.rglob("*.cpp")]
    assert names
    assert len(names) == len(set(names))
