#!/usr/bin/env python3
"""Write docs/configuration.md and configs/schema.json from the configuration schema."""

import argparse
import os
from pathlib import Path

from megatron_gptx.config.reference import json_schema, markdown

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Write both files, or with --check tell which of them is stale (status 1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether they are fresh")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository folder")
    arguments = parser.parse_args(argv)
    generated = {"docs/configuration.md": markdown(), "configs/schema.json": json_schema()}
    stale = [name for name, text in generated.items() if _read(arguments.root / name) != text]
    for name in stale:
        if arguments.check:
            print(f"{name} is stale; run python tools/document_config.py")
        else:
            _write(arguments.root / name, generated[name])
            print(f"wrote {name}")
    return 1 if arguments.check and stale else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
