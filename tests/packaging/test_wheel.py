"""A wheel, installed far from the checkout, has all that it takes to train on the fused kernels.

Its environment holds the wheel and nothing else of ours. What the project depends on is found in
the environment of the tests, so that nothing has to be fetched.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from megatron_gptx.config.yaml_writer import dump
from tests.runs import tiny_config, write_corpus

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("megatron_gptx", "csrc", "configs", "docs", "tools", "docker")
SHIPPED = {"csrc": "megatron_gptx/csrc", "configs": "megatron_gptx/configs"}


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    # Where ninja is: the kernels of another test are used again, or built here.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*words: object, folder: Path) -> str:
    done = run(*words, folder=folder)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return a folder with a source archive, and with the wheel that was built from it."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    for part in PARTS:
        made = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, sources / part, ignore=made)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, sources)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(built)!r})"
    succeed(sys.executable, "-c", build, folder=sources)
    (archive,) = built.glob("*.tar.gz")
    succeed(
        *(sys.executable, "-m", "pip", "wheel", archive, "--no-deps", "--no-index"),
        *("--no-build-isolation", "--wheel-dir", built),
        folder=built,
    )
    return built


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Install the wheel into an empty environment and return the folder of its commands."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    (packages,) = folder.glob("lib/python*/site-packages")
    succeed(
        *(sys.executable, "-m", "pip", "--python", python, "install", wheel),
        *("--no-deps", "--no-index", "--quiet"),
        folder=built,
    )
    # Only now, so that pip sees nothing there that it might replace. A path in such a file brings
    # the packages of that folder, but not their own .pth files: an editable install stays out.
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with a dataset and a configuration of one stage."""
    place = tmp_path_factory.mktemp("place")
    write_corpus(place)
    options = {"model__vocab_size": 257, "data__tokenizer": "bytes", "generation__seed": 1}
    (place / "tiny.yml").write_text(dump(tiny_config(place, place / "run", **options)))
    return place


def test_the_wheel_holds_every_source_file_of_the_package_and_what_it_ships(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("megatron_gptx/")}
    wanted = set()
    for part in ("megatron_gptx", *SHIPPED):
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT / part).as_posix()
                wanted.add(f"{SHIPPED.get(part, part)}/{name}")
    assert held == wanted


def test_the_source_archive_holds_what_builds_and_explains_it(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"setup.py", "LICENSE", "deepy.py", "train.py", "constraints.txt", "Makefile"} <= names
    assert {
        "csrc/cpu/simd/key_order.cpp",
        "configs/1B.yml",
        "tools/plan.py",
        "docs/kernels.md",
    } <= names


def test_the_package_comes_from_the_wheel_with_its_kernels(installed, place):
    code = (
        "import megatron_gptx.ops.kernels.build as b; "
        "print(b.__file__, b.SOURCES, len(list(b.SOURCES.rglob('*.cpp'))))"
    )
    module, sources, count = succeed(installed / "python", "-c", code, folder=place).split()
    assert Path(module).is_relative_to(installed.parent)
    assert Path(sources).is_relative_to(installed.parent)
    assert int(count) == len(list((ROOT / "csrc").rglob("*.cpp")))


def test_a_plan_finds_the_shipped_configurations(installed, place):
    plans = {
        succeed(installed / "gptx", "plan", name, folder=place)
        for name in ("1B", "configs/1B.yml", ROOT / "configs" / "1B.yml")
    }
    assert len(plans) == 1
    assert "parameters in" in plans.pop()


def test_a_run_trains_on_the_fused_kernels_evaluates_and_generates(installed, place):
    gptx, fused = installed / "gptx", ("--set", "ops.backend=fused")
    words = ("tiny.yml", "--set", "training.steps=10", *fused)
    succeed(gptx, "train", *words, folder=place)
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    measured = json.loads(succeed(gptx, "evaluate", *words, "--json", folder=place))
    assert measured["step"] == 10
    written = succeed(gptx, "generate", *words, "--prompt", "ab", folder=place)
    assert written.startswith("ab")
    listed = succeed(gptx, "checkpoints", "list", "run", folder=place)
    assert "latest" in listed
