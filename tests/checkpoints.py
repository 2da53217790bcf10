"""Changing checkpoints, with and without the knowledge of their manifests."""

import json
from pathlib import Path
from typing import Any

from megatron_gptx.checkpoint.layout import seal
from megatron_gptx.data.files import file_sha256


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_manifest(folder: Path, manifest: Any) -> None:
    """Write a manifest and the seal that vouches for it."""
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal(content))


def vouch_for(folder: Path, name: str) -> None:
    """Make the manifest match a changed file, as someone would who forges a checkpoint."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / name
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_manifest(folder, manifest)
