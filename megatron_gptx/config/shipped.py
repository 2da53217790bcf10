"""Folders that come with the package: inside it where it is installed, beside it in a checkout."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """Return where `csrc` or `configs` lies."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def shipped_names() -> list[str]:
    """Return the names that shipped configurations go by, such as `1B` and `overlays/cpu`."""
    folder = shipped_folder("configs")
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yml"))
    return sorted(path.as_posix() for path in found)


def find_config(path: Path) -> Path:
    """Return the file that a configuration's name stands for: a file here, or else a shipped one.

    `configs/1B.yml`, `1B.yml` and `1B` name the same shipped file. A name that stands for nothing
    comes back as it is.
    """
    # os.path answers where Path raises: a name may be longer than a system takes.
    if os.path.exists(path):  # noqa: PTH110
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yml")
    found = shipped_folder("configs") / f"{name}.yml"
    return found if os.path.isfile(found) else path  # noqa: PTH113
