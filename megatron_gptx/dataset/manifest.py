"""PREFIX.d/manifest.json: what a dataset was made from, kept beside files we must not extend.

Its last entry is a checksum of everything in it.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.mmididx import PathLike
from megatron_gptx.files.write import write_synced

FORMAT = 3  # from which on a manifest has a checksum of its own

_CHECKSUM = "manifest_sha256"
_BLANK = "0" * 64
_LAST_ENTRY = re.compile(rf',\n  "{_CHECKSUM}": "([0-9a-f]{{64}})"\n}}\n\Z')


def manifest_path(prefix: PathLike) -> Path:
    """Return the path of a dataset's manifest; its folder is ours to use."""
    return Path(f"{os.fspath(prefix)}.d") / "manifest.json"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest, or None where there is none.

    Raises:
        UserError: the file is not a JSON object, or is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a manifest: {why(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a manifest: it holds a {type(content).__name__}")
    found = _LAST_ENTRY.search(text)
    if found is not None:
        blank = text[: found.start(1)] + _BLANK + text[found.end(1) :]
        whole = hashlib.sha256(blank.encode()).hexdigest() == found[1]
    else:
        number = content.get("format")
        whole = isinstance(number, int) and number < FORMAT if "format" in content else True
    if not whole:
        raise UserError(
            f"{path}: damaged: it is not what its own checksum was made of; bring it back or make "
            f"the dataset again, or remove {path.parent} to use the dataset without"
        )
    content.pop(_CHECKSUM, None)
    return content


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest, aside first."""
    text = json.dumps({**content, _CHECKSUM: _BLANK}, indent=2, ensure_ascii=False) + "\n"
    # The name of a file need not be UTF-8; what is not becomes what JSON writes for it, \udc80.
    text = text.encode("utf-8", "backslashreplace").decode()
    at = text.rindex(_BLANK)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    write_synced(path, text[:at] + checksum + text[at + len(_BLANK) :])


def absent_manifest(prefix: PathLike) -> str | None:
    """Return what is wrong where a dataset's manifest is gone, or None where nothing promises one.

    Datasets of others have none, and no PREFIX.d either.
    """
    path = manifest_path(prefix)
    if path.is_file() or not path.parent.is_dir():
        return None
    return (
        f"{path}: gone, though {path.parent} is there: nothing tells whether the dataset is what "
        f"was written; bring it back, make the dataset again, or remove {path.parent}"
    )


def forbidden_ids(manifest: dict[str, Any]) -> list[int]:
    """Return the ids that may stand nowhere but at the end of a document."""
    if "markers" in manifest:
        return manifest["markers"] or []
    # Before format 3, only the end of a document is known, if text could not become it.
    end, options = manifest.get("end_of_document"), manifest.get("options") or {}
    return [] if end is None or options.get("special_tokens", "keep") == "keep" else [end]


def matching_manifest(dataset: IndexedDataset) -> dict[str, Any] | None:
    """Return a dataset's manifest if it speaks of these files: they may have been replaced since.

    It then has the largest id and the tokenizer.
    """
    manifest = read_manifest(manifest_path(dataset.prefix))
    if manifest is None or manifest.get("num_tokens") != dataset.num_tokens:
        return None
    known = isinstance(manifest.get("max_id"), int) and isinstance(manifest.get("tokenizer"), dict)
    return manifest if known and "sha256" in manifest["tokenizer"] else None
