"""The benchmark of the loader measures both sides and the start of a trillion tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]


def test_both_sides_are_measured(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "loader_cpu.py",
        "--tokens",
        "200000",
        "--tokens-on-disk",
        "300000",
    ]
    command += ["--rounds", "1", "--seconds", "0.02", "--output", tmp_path / "result.json"]
    # A short name: the sockets in there, of PyTorch's loader, may have 107 characters.
    with TemporaryDirectory() as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert list(Path(temporary).iterdir()) == []
    result = json.loads((tmp_path / "result.json").read_text())
    trillion = result.pop("a trillion tokens")
    assert all(speed > 0 for speed in result.pop("from disk").values())
    assert len(result) == 2
    for speeds in result.values():
        assert len(speeds) == 7
        assert all(speed > 0 for values in speeds.values() for speed in values)
    assert trillion["peak of allocations, MB"] < 100
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
