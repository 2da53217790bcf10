"""The tokenizer that a run takes along, so that its checkpoints can be read and written with.

RUN_DIR/tokenizer/manifest.json    which file opens it, checksums, the ids that end a document
                 /files/...        every file that it needs, under its own name
"""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.checkpoint.manifest import printable
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError, why
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import matching_manifest
from megatron_gptx.files.checksums import file_sha256
from megatron_gptx.files.write import aside_of, sync_path, write_synced
from megatron_gptx.tokenizer.base import Tokenizer
from megatron_gptx.tokenizer.build import BYTES, load_tokenizer

_FORMAT = 1
_REMEDY = "remove the folder and set data.tokenizer to the tokenizer that the run was trained with"
_FILE = re.compile(r"(?!\.\.?$)[^/\0]{1,255}")


class RunTokenizer(NamedTuple):
    """A tokenizer, and what the run's datasets say of the end of a document.

    Attributes:
        tokenizer: the tokenizer.
        ends: the ids that end a document; none where no dataset tells.
        end_name: the token that they were made with, where it was named.
    """

    tokenizer: Tokenizer
    ends: list[int]
    end_name: str | None


def tokenizer_folder(run_dir: str | Path) -> Path:
    """Return the folder of a run's tokenizer."""
    return Path(run_dir) / "tokenizer"


def keep_tokenizer(data: DataConfig, run_dir: str | Path) -> str | None:
    """Copy the tokenizer of a run into its folder, if it has one.

    Returns:
        A line that says so where another one was kept there.

    Raises:
        UserError: a file cannot be read, or the copy not be written.
    """
    if data.tokenizer is None:
        return None
    found = tokenizer_of(data)
    tokenizer, folder = found.tokenizer, tokenizer_folder(run_dir)
    content = {
        "format": _FORMAT,
        "opens": tokenizer.files[0].name if tokenizer.files else BYTES,
        "sha256": tokenizer.fingerprint,
        "ends": found.ends,
        "end_name": found.end_name,
    }
    try:
        content["files"] = {path.name: file_sha256(path) for path in tokenizer.files}
        before = None
        with suppress(UserError):  # what is damaged is written anew
            before = _manifest(folder)
        if before == content and not _damage(folder, content):
            return None
        aside = aside_of(folder)
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "files").mkdir(parents=True)
        for path in tokenizer.files:
            write_synced(aside / "files" / path.name, path.read_bytes())
        write_synced(aside / "manifest.json", json.dumps(content, indent=2).encode() + b"\n")
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
        sync_path(folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: the tokenizer cannot be copied there: {why(error)}") from None
    if before is None or before.get("sha256") == tokenizer.fingerprint:
        return None
    return f"tokenizer: {data.tokenizer} is another one than this run had; {folder} is replaced"


def open_run_tokenizer(run_dir: str | Path) -> RunTokenizer | None:
    """Return the tokenizer that a run has taken along, or None where it has none.

    Raises:
        UserError: a file of it is missing, or has changed since.
    """
    folder = tokenizer_folder(run_dir)
    content = _manifest(folder)
    if content is None:
        return None
    if problem := _damage(folder, content):
        raise UserError(f"{folder} is damaged: {problem}; {_REMEDY}")
    opens = content["opens"]
    path = str(folder / "files" / opens) if content["files"] else BYTES
    # GPT-2's merges may have had any name, and have lain anywhere.
    others = [folder / "files" / file for file in content["files"] if file != opens]
    name = content["end_name"]
    tokenizer = load_tokenizer(
        path, merges=others[0] if others else None, end_of_document_name=name
    )
    return RunTokenizer(tokenizer, content["ends"], name)


def tokenizer_of(data: DataConfig) -> RunTokenizer:
    """Return the tokenizer that a configuration names, with what its training data says of it.

    Raises:
        UserError: it cannot be opened.
    """
    assert data.tokenizer is not None
    ends: set[int] = set()
    names: set[str | None] = set()
    for prefix in data.train_weights:
        try:
            manifest = matching_manifest(IndexedDataset(prefix)) or {}
        except UserError:
            continue  # it is no longer there: text can be written without it
        if isinstance(end := manifest.get("end_of_document"), int):
            ends.add(end)
            names.add((manifest.get("options") or {}).get("eod_token"))
    name = names.pop() if len(names) == 1 else None
    tokenizer = load_tokenizer(data.tokenizer, end_of_document_name=name)
    return RunTokenizer(tokenizer, sorted(ends), name)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {why(error)}") from None
    if not _is_manifest(content):
        raise UserError(f"{path}: damaged, or of another version; {_REMEDY}")
    return content


def _is_manifest(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and content.get("format") == _FORMAT
        and isinstance(files := content.get("files"), dict)
        and all(_FILE.fullmatch(name) and isinstance(sha, str) for name, sha in files.items())
        and (content.get("opens") in files or (content.get("opens") == BYTES and not files))
        and isinstance(ends := content.get("ends"), list)
        and all(isinstance(end, int) and end >= 0 for end in ends)
        and isinstance(content.get("end_name"), str | None)
    )


def _damage(folder: Path, content: dict[str, Any]) -> str | None:
    """Return what is wrong with the files of a kept tokenizer, or None where they are intact."""
    for name, sha256 in content["files"].items():
        path = folder / "files" / name
        try:
            if file_sha256(path) != sha256:
                return printable(f"{path} has changed since the run began")
        except OSError as error:
            return printable(f"{path} cannot be read: {why(error)}")
    return None
