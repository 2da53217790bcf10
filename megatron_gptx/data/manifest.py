"""PREFIX.d/manifest.json: what a dataset was made from, kept beside files we must not extend."""

import json
import os
from pathlib import Path
from typing import Any

from megatron_gptx.config.errors import UserError, why
from megatron_gptx.data.files import write_aside
from megatron_gptx.data.indexed_dataset import IndexedDataset
from megatron_gptx.data.mmididx import PathLike


def manifest_path(prefix: PathLike) -> Path:
    """Return the path of a dataset's manifest; its folder is ours to use."""
    return Path(f"{os.fspath(prefix)}.d") / "manifest.json"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest, or None where there is none.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a manifest: {why(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a manifest: it holds a {type(content).__name__}")
    return content


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest, aside first."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # The name of a file need not be UTF-8; what is not becomes what JSON writes for it, \udc80.
    write_aside(path, text.encode("utf-8", "backslashreplace").decode())


def matching_manifest(dataset: IndexedDataset) -> dict[str, Any] | None:
    """Return a dataset's manifest if it speaks of these files: they may have been replaced since.

    It then has the largest id and the tokenizer.
    """
    manifest = read_manifest(manifest_path(dataset.prefix))
    if manifest is None or manifest.get("num_tokens") != dataset.num_tokens:
        return None
    known = isinstance(manifest.get("max_id"), int) and isinstance(manifest.get("tokenizer"), dict)
    return manifest if known and "sha256" in manifest["tokenizer"] else None
