"""The examples of docs/library.md run as they stand, and importing the package costs nothing."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from megatron_gptx.ops.kernels import library

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    assert len(EXAMPLES) == 3
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "examples.py"
    program.write_text("\n".join(EXAMPLES))
    runpy.run_path(str(program))
    shown = capsys.readouterr().out.splitlines()
    # The machine of the tests can build the kernels.
    assert library.loaded()
    assert sum(line.startswith("attention: fused kernels") for line in shown) == 1
    assert any("parameters in" in line for line in shown)


def test_importing_the_package_imports_nothing_else():
    code = """
import sys
before = set(sys.modules)
import megatron_gptx
print(*(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("megatron_gptx\n", "")
