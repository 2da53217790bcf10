"""Datasets joined to one, and one divided into several; no token passes through a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_gptx import __version__
from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import (
    FORMAT,
    forbidden_ids,
    matching_manifest,
    write_manifest,
)
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.dataset.statistics import id_range
from megatron_gptx.dataset.writer import IndexedDatasetWriter, folder_of
from megatron_gptx.files.checksums import checksums

_DOCUMENTS = 1 << 18  # looked at together: bounds memory
_TOKENS = 1 << 22


@dataclass(frozen=True)
class Piece:
    """Documents [first, last) of a dataset."""

    dataset: IndexedDataset
    first: int
    last: int


def merge(prefixes: Sequence[Path], output: Path, *, overwrite: bool = False) -> IndexedDataset:
    """Write the documents of some datasets, one dataset after another, as one, and return it.

    Sequences stay as they are; ids get the widest type among the datasets. Where all were made
    with one tokenizer, the manifest says so.

    Raises:
        UserError: a dataset is damaged, two were made with different tokenizers, or the output is
            in the way or one of the inputs.
    """
    if any(prefix.resolve() == output.resolve() for prefix in prefixes):
        raise UserError(f"{output}: is an input as well")
    pieces = [Piece(dataset, 0, dataset.num_documents) for dataset in map(IndexedDataset, prefixes)]
    made_by = {"tool": "merge", "sources": [str(prefix) for prefix in prefixes]}
    return write_pieces(pieces, output, made_by, overwrite=overwrite)


def write_pieces(
    pieces: Sequence[Piece], output: Path, made_by: dict[str, Any], *, overwrite: bool = False
) -> IndexedDataset:
    """Write pieces of datasets as one dataset, with a manifest that holds `made_by`."""
    common = _common(pieces)
    if not overwrite and (bin_path(output).exists() or idx_path(output).exists()):
        raise UserError(f"{output}: a dataset is there; choose another prefix or --overwrite it")
    dtype = np.result_type(*(piece.dataset.dtype for piece in pieces))
    with folder_of(output) as folder:
        writer = IndexedDatasetWriter(output, dtype)
        try:
            for piece in pieces:
                _copy(piece, writer)
            if not writer.num_documents:
                raise UserError(f"{output}: not written: no document is left for it")
            tokens, index = writer.complete()
            low, high = id_range(np.memmap(tokens, writer.dtype)) if writer.num_tokens else (0, -1)
            content = {
                "format": FORMAT,
                "version": __version__,
                "made_by": made_by,
                **common,
                "num_documents": writer.num_documents,
                "num_tokens": writer.num_tokens,
                "min_id": low,
                "max_id": high,
                "checksums": {"bin": checksums(tokens), "idx": checksums(index)},
            }
            # As everywhere, the index appears last and is never seen with another manifest.
            idx_path(output).unlink(missing_ok=True)
            write_manifest(folder / "manifest.json", content)
            writer.finalize()
        except BaseException:
            writer.abort()
            raise
    return IndexedDataset(output)


def _copy(piece: Piece, writer: IndexedDatasetWriter) -> None:
    dataset = piece.dataset
    for first in range(piece.first, piece.last, _DOCUMENTS):
        last = min(first + _DOCUMENTS, piece.last)
        starts = dataset.document_starts[first : last + 1]
        lengths = dataset.lengths[starts[0] : starts[-1]]
        sequences = np.diff(starts)
        start, stop = dataset.token_offset(first), dataset.token_offset(last)
        if dataset.contiguous and dataset.dtype == writer.dtype:
            writer.append_file(
                bin_path(dataset.prefix),
                lengths,
                sequences=sequences,
                first_byte=start * dataset.dtype.itemsize,
            )
        else:
            blocks = (
                dataset.read(at, min(at + _TOKENS, stop)) for at in range(start, stop, _TOKENS)
            )
            writer.append_tokens(blocks, lengths, sequences)


def _common(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return what the manifests of all pieces agree on, as far as all have one."""
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    manifests = []
    for piece in pieces:
        manifest = matching_manifest(piece.dataset)
        manifests.append(manifest)
        if manifest is not None:
            known.setdefault(manifest["tokenizer"]["sha256"], (piece.dataset.prefix, manifest))
    if len(known) > 1:
        (one, _), (other, _) = list(known.values())[:2]
        raise UserError(f"{one} and {other} were made with different tokenizers")
    learned: dict[bool, Path] = {}
    for piece, manifest in zip(pieces, manifests, strict=True):
        if manifest is not None:
            of_labels = bool((manifest.get("options") or {}).get("labels"))
            learned.setdefault(of_labels, piece.dataset.prefix)
    if len(learned) > 1:
        raise UserError(f"{learned[True]} holds labels, and {learned[False]} tokens")
    if not known or None in manifests:
        return {"tokenizer": None, "end_of_document": None}
    ends = {manifest["end_of_document"] for manifest in manifests if manifest is not None}
    markers = {tuple(forbidden_ids(manifest)) for manifest in manifests if manifest is not None}
    ((_, manifest),) = known.values()
    same = len(ends) == len(markers) == 1
    return {
        "tokenizer": manifest["tokenizer"],
        "end_of_document": ends.pop() if len(ends) == 1 else None,
        "markers": list(markers.pop()) if same else None,
        **({"options": {"labels": True}} if True in learned else {}),
    }
