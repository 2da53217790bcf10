"""The generated reference and the editors' schema are complete and fresh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.config.options import walk_options, walk_sections
from megatron_gptx.config.reference import json_schema, markdown
from megatron_gptx.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]


def document_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/document_config.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [("docs/configuration.md", markdown()), ("configs/schema.json", json_schema())],
    ids=["docs", "schema"],  # the texts would fill the screen
)
def test_the_generated_file_is_fresh(name, text):
    stale = f"{name} is stale; run python tools/document_config.py"
    assert (ROOT / name).read_text(encoding="utf-8") == text, stale


def test_check_names_stale_files_and_writing_mends_them(tmp_path):
    checked = document_config("--check", "--root", str(tmp_path))
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        "docs/configuration.md is stale; run python tools/document_config.py",
        "configs/schema.json is stale; run python tools/document_config.py",
    ]
    assert document_config("--root", str(tmp_path)).returncode == 0
    assert document_config("--check", "--root", str(tmp_path)).returncode == 0
    assert (tmp_path / "docs/configuration.md").read_text(encoding="utf-8") == markdown()
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["configuration.md"]


def test_every_option_has_a_row_with_a_description():
    text = markdown()
    for path, field in walk_options():
        assert field.description, path
        assert f"| `{path[-1]}` " in text
        assert field.description.replace("|", "\\|") in text


def test_every_section_has_a_heading():
    for path, section in walk_sections():
        assert section.__doc__
        assert not path or f"\n## {'.'.join(path)}\n" in markdown()


def definitions() -> list[dict]:
    schema = json.loads(json_schema())
    return [schema, *schema["$defs"].values()]


def test_the_schema_refuses_unknown_keys_and_requires_none():
    assert len(definitions()) == len(list(walk_sections()))
    for definition in definitions():
        assert definition["additionalProperties"] is False
        assert "required" not in definition


def test_the_schema_describes_every_option():
    described = [
        name
        for definition in definitions()
        for name, option in definition["properties"].items()
        if option.get("description")
    ]
    assert sorted(described) == sorted(path[-1] for path, _ in walk_options())
    assert set(json.loads(json_schema())["properties"]) == set(Config.model_fields)
