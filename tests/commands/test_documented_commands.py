"""What docs/preprocessing.md shows works as it is pasted, from any folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.commands import preprocess

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="this checkout has no .venv")
def test_the_commands_of_the_guide_work_without_an_active_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(tools/.*?)^```", guide, re.MULTILINE | re.DOTALL)[1]
    lines = [json.dumps({"text": f"the cat sat on mat {i}"}) for i in range(400)]
    Path("corpus.jsonl").write_text("\n".join(lines))
    Path("tools").symlink_to(ROOT / "tools")
    for name in ("books", "code"):
        words = ["corpus.jsonl", "--tokenizer", "bytes", "--output-prefix", f"data/{name}"]
        assert preprocess.main(words) == 0
    # Only what the system and the interpreter itself bring: nothing that is installed in a .venv.
    path = os.pathsep.join([str(Path(sys.base_prefix, "bin")), "/usr/bin", "/bin"])
    kept = {name: os.environ[name] for name in ("HOME", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        ["bash", "-e", "-c", block], env={**kept, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("corpus", "corpus_train", "corpus_valid", "all"):
        assert Path(f"data/{name}.idx").is_file()
    assert Path("lengths.png").stat().st_size


def test_no_guide_shows_a_command_that_needs_an_active_environment():
    for guide in (ROOT / "docs").glob("*.md"):
        blocks = re.findall(r"^```\w*\n(.*?)^```", guide.read_text("utf-8"), re.M | re.S)
        found = re.findall(r"^(?:\w+=\S+ )*(?:python3?|pytest|gptx) .*", "".join(blocks), re.M)
        assert found == [], guide.name
