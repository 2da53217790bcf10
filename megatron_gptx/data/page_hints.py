"""How the system loads a mapped file: what it is told beforehand about reads here and there.

By itself it loads whatever lies around a read, up to megabytes of it, and each read waits for the
disk. Told better, it loads what is read, and for all reads of a step at the same time
(benchmarks/loader_cpu.py measures it).
"""

import mmap
from typing import TypeGuard

from megatron_gptx.data.document_index import Integers

# Smaller files are soon in memory as a whole, and best loaded by what lies around.
SMALL_FILE_BYTES = 1 << 28


def expect_scattered_reads(mapping: mmap.mmap | bytes) -> None:
    """Let the system load no more than what is read."""
    if _is_large(mapping) and hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)


def announce(mapping: mmap.mmap | bytes, starts: Integers, num_bytes: int) -> None:
    """Let the system begin to load this many bytes from each of (n,) starts on."""
    if not _is_large(mapping) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    for start in starts.tolist():
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, page, start + num_bytes - page)


def _is_large(mapping: mmap.mmap | bytes) -> TypeGuard[mmap.mmap]:
    return isinstance(mapping, mmap.mmap) and len(mapping) >= SMALL_FILE_BYTES
