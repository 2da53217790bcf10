#!/usr/bin/env python3
"""Choose the quickstart's corpus: the Python files of this Python's standard library.

Writes OUTPUT/train.list and OUTPUT/valid.list, one path per line, for --list-file of the other
tools. Every 20th file is for validation. Tests and installed packages are left out.
"""

import argparse
import os
import sys
import sysconfig
from pathlib import Path

from megatron_gptx.config.errors import describe
from megatron_gptx.files.write import write_aside

_EVERY = 20
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/quickstart"))
    args = parser.parse_args(argv)
    try:
        library = Path(sysconfig.get_paths()["stdlib"])
        paths = find_sources(library)
        if len(paths) < _EVERY:
            print(f"{library}: only {len(paths)} Python files there", file=sys.stderr)
            return 2
        args.output.mkdir(parents=True, exist_ok=True)
        for name, chosen in split(paths).items():
            write_aside(args.output / f"{name}.list", "".join(f"{path}\n" for path in chosen))
            num_bytes = sum(path.stat().st_size for path in chosen)
            print(f"{name}: {len(chosen):,} files, {num_bytes / 1e6:.1f} MB")
    except OSError as error:
        print(describe(error), file=sys.stderr)
        return 2
    return 0


def find_sources(library: Path) -> list[Path]:
    """Return the UTF-8 Python files below a folder that are not empty, sorted by relative path."""
    found = []
    for here, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(here, name) for name in names if name.endswith(".py")]
    found.sort(key=lambda path: path.relative_to(library).parts)
    return [path for path in found if _is_text(path)]


def split(paths: list[Path]) -> dict[str, list[Path]]:
    """Return every 20th path as `valid`, the others as `train`."""
    valid = paths[_EVERY - 1 :: _EVERY]
    return {"train": [path for path in paths if path not in set(valid)], "valid": valid}


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except UnicodeDecodeError:
        return False


if __name__ == "__main__":
    sys.exit(main())
