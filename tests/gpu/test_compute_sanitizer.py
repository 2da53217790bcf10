"""NVIDIA's compute-sanitizer finds neither wrong memory nor races in the kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    # Only our kernels: the others would take hours.
    command += ["--kernel-regex", "kns=topk_softmax", "--kernel-regex", "kns=kept", sys.executable]
    command += [str(ROOT / "tests" / "gpu" / "sanitized_run.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
