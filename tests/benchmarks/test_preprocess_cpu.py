"""The benchmark of preprocessing runs, compares the ids, and reports what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "src").mkdir()
    for number in range(40):
        text = f"def f{number}(x):\n    return x + {number}  # é\n" * 30
        (tmp_path / "src" / f"{number}.py").write_text(text, encoding="utf-8")

    def benchmark(*arguments):
        return subprocess.run(
            [
                *(sys.executable, str(ROOT / "benchmarks" / "preprocess_cpu.py")),
                *("--roots", "src", "--small-mb", "0.2", "--rival-mb", "0.05", "--repeats", "1"),
                *("--vocab-size", "300", "--folder", str(tmp_path), *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return benchmark


def test_every_way_is_measured_and_the_ratios_are_of_what_was_measured(benchmark, tmp_path):
    done = benchmark("--large-mb", "0.5", "--output", "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    runs = result["runs"]
    assert list(runs) == [
        *("by document", "encode_batch", "ours, 1 worker(s)", "ours, 2 worker(s)"),
        *("ours, 1 worker(s), large", "ours, 2 worker(s), large"),
    ]
    for run in runs.values():
        assert run["megabytes_per_second"] == run["bytes"] / 1e6 / median(run["seconds"])
        assert run["peak_megabytes"] > 10
    speeds = [run["megabytes_per_second"] for run in runs.values()]
    assert result["ratios"]["over by document"] == speeds[3] / speeds[0]
    assert result["ratios"]["2 workers over 1"] == speeds[3] / speeds[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "src"]


def test_a_folder_without_sources_is_said(benchmark):
    done = benchmark("--roots", "none")
    assert done.returncode == 1
    assert done.stderr == "no source files below none\n"
