"""Loss curves as a picture."""

import json
import sys

import pytest

from megatron_gptx.commands.main import main

ROWS = [{"step": n, "tokens": 10 * n, "loss": 5.0 - n} for n in range(1, 4)]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return tmp_path


def test_a_run_becomes_a_picture_beside_its_metrics(run_dir, capsys):
    assert main(["plot", str(run_dir), "--entropy", "4.5"]) == 0
    assert capsys.readouterr().out == f"wrote {run_dir}/loss.png\n"
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["plot", "inspect"])
def test_without_matplotlib_one_line_says_what_to_install(command, run_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["plot", str(run_dir)]
    if command == "inspect":
        from tests.runs import write_corpus

        write_corpus(run_dir)
        words = ["inspect", str(run_dir / "train"), "--png", str(run_dir / "lengths.png")]
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.count("\n") == 1
    assert "needs the package matplotlib: pip install 'megatron_gptx[gpu]'" in said
