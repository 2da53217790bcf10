"""Whether a dataset is whole, and is what its manifest says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import (
    absent_manifest,
    forbidden_ids,
    manifest_path,
    matching_manifest,
    read_manifest,
)
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.dataset.statistics import id_range
from megatron_gptx.files.checksums import CHECKSUM_BLOCK, checksums

# Where no manifest tells the largest id: evenly spaced blocks, 4 M tokens in all.
_BLOCKS = 64
_BLOCK_TOKENS = 1 << 16
_DOCUMENTS = 1 << 20  # looked at together: bounds memory
_TOKENS = 1 << 22


@dataclass(frozen=True)
class Expected:
    """What a dataset must fit; null where nothing is asked."""

    vocab_size: int | None = None
    tokenizer_sha256: str | None = None
    remedy: str = "it was made with another tokenizer"  # of an id outside the vocabulary


def quick_problems(dataset: IndexedDataset, expected: Expected) -> list[str]:
    """Return what is wrong as far as can be told in no time, whatever the dataset's size.

    Opening it has compared sizes and pointers. The largest id comes from the manifest; without
    one, 4 million tokens spread over the file are read.
    """
    if (absent := absent_manifest(dataset.prefix)) is not None:
        return [absent]
    manifest = matching_manifest(dataset)
    if manifest is not None:
        low, high = manifest.get("min_id", 0), manifest["max_id"]
    else:
        low, high = _sampled_range(dataset)
    return [*_range_problems(dataset, low, high, expected), *_tokenizer_problems(dataset, expected)]


def all_problems(dataset: IndexedDataset, expected: Expected, *, threads: int = 1) -> Iterator[str]:
    """Yield what is wrong after reading every byte of the dataset."""
    manifest = read_manifest(manifest_path(dataset.prefix))
    yield from _tokenizer_problems(dataset, expected)
    if dataset.num_tokens:
        low, high = id_range(dataset.read(0, dataset.num_tokens))
        if low == IGNORE and ((manifest or {}).get("options") or {}).get("labels"):
            low = 0  # a dataset of labels may be that
        yield from _range_problems(dataset, low, high, expected)
    if manifest is None:
        if (absent := absent_manifest(dataset.prefix)) is not None:
            yield absent
        return
    for name, found in (
        ("num_documents", dataset.num_documents),
        ("num_tokens", dataset.num_tokens),
    ):
        if manifest.get(name) != found:
            yield f"{dataset.prefix}: {name} is {found}, its manifest says {manifest.get(name)}"
    yield from _checksum_problems(dataset, manifest, threads)
    if (end := manifest.get("end_of_document")) is not None:
        yield from _end_problems(dataset, end)
    yield from _marker_problems(dataset, forbidden_ids(manifest), manifest.get("end_of_document"))


def _range_problems(
    dataset: IndexedDataset, low: int, high: int, expected: Expected
) -> Iterator[str]:
    vocab_size = expected.vocab_size
    if low < 0:
        yield f"{dataset.prefix}: token id {low} is negative; only a dataset of labels may be that"
    elif vocab_size is not None and high >= vocab_size:
        yield (
            f"{dataset.prefix}: token id {high} is outside the vocabulary of {vocab_size}: "
            f"{expected.remedy}"
        )


def _tokenizer_problems(dataset: IndexedDataset, expected: Expected) -> Iterator[str]:
    manifest = matching_manifest(dataset)
    made_with = manifest["tokenizer"]["sha256"] if manifest else None
    wanted = expected.tokenizer_sha256
    if made_with and wanted and made_with != wanted:
        yield (
            f"{dataset.prefix}: made with another tokenizer (sha256 {made_with[:12]}) than the one "
            f"named (sha256 {wanted[:12]}): preprocess it again, or name its own"
        )


def _checksum_problems(
    dataset: IndexedDataset, manifest: dict[str, Any], threads: int
) -> Iterator[str]:
    known = manifest.get("checksums") or {}
    for name, path in (("bin", bin_path(dataset.prefix)), ("idx", idx_path(dataset.prefix))):
        if name not in known:
            continue
        for number, (found, wanted) in enumerate(
            zip(checksums(path, threads=threads), known[name], strict=False)
        ):
            if found != wanted:
                first = number * CHECKSUM_BLOCK
                last = min(first + CHECKSUM_BLOCK, path.stat().st_size)
                yield f"{path}: damaged between bytes {first:,} and {last:,}"


def _end_problems(dataset: IndexedDataset, end: int) -> Iterator[str]:
    without, example = 0, None
    for first in range(0, dataset.num_documents, _DOCUMENTS):
        last = min(first + _DOCUMENTS, dataset.num_documents)
        lengths = dataset.document_lengths(first, last)
        ends = dataset.token_offset(first) + np.cumsum(lengths)
        bad = lengths == 0
        bad[~bad] = dataset.take(ends[~bad] - 1) != end
        if bad.any() and example is None:
            example = first + int(np.argmax(bad))
        without += int(bad.sum())
    if without:
        yield (
            f"{dataset.prefix}: {without:,} document(s), such as number {example}, do not end with "
            f"id {end}"
        )


def _marker_problems(dataset: IndexedDataset, markers: list[int], end: int | None) -> Iterator[str]:
    """Yield which markers stand inside documents, where no text becomes one."""
    count, example = 0, None
    for first in range(0, dataset.num_documents if markers else 0, _DOCUMENTS):
        last = min(first + _DOCUMENTS, dataset.num_documents)
        start = dataset.token_offset(first)
        ends = start + np.cumsum(dataset.document_lengths(first, last))
        for at in range(start, dataset.token_offset(last), _TOKENS):
            ids = dataset.read(at, min(at + _TOKENS, dataset.token_offset(last)))
            found = np.flatnonzero(np.isin(ids, markers))
            documents = np.searchsorted(ends, at + found, side="right")
            inside = (at + found + 1 != ends[documents]) | (ids[found] != end)
            count += int(inside.sum())
            if example is None and inside.any():
                which = int(np.argmax(inside))
                example = (int(ids[found[which]]), first + int(documents[which]))
    if example is not None:
        yield (
            f"{dataset.prefix}: {count:,} marker(s) stand inside documents, such as id "
            f"{example[0]} in number {example[1]}: text became what no text may become; "
            "preprocess it again"
        )


def _sampled_range(dataset: IndexedDataset) -> tuple[int, int]:
    if dataset.num_tokens == 0:
        return 0, -1
    last = max(0, dataset.num_tokens - _BLOCK_TOKENS)
    ranges = [
        id_range(dataset.read(start, min(start + _BLOCK_TOKENS, dataset.num_tokens)))
        for start in np.linspace(0, last, _BLOCKS, dtype=np.int64).tolist()
    ]
    return min(low for low, _ in ranges), max(high for _, high in ranges)
