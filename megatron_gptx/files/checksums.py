"""Fingerprints of files."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUM_BLOCK = 1 << 26  # bytes per checksum: one names where a file is damaged


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksums(path: Path, *, threads: int = 1) -> list[str]:
    """Return the SHA-256 of each block of CHECKSUM_BLOCK bytes of a file."""

    def block_sha256(start: int) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(start)
            left = CHECKSUM_BLOCK
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(block_sha256, range(0, path.stat().st_size, CHECKSUM_BLOCK)))
