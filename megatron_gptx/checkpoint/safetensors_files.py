"""Tensors on disk in the safetensors format: written and hashed in one pass, read in slices."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_gptx.checkpoint.names import OPTIMIZER, weights_name
from megatron_gptx.checkpoint.optimizer_state import MASTER
from megatron_gptx.distributed.fault_injection import fault_point
from megatron_gptx.files.write import sync_path

THREADS = 8  # of each rank: for checksums, and to wait for the disk

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Part(NamedTuple):
    """One file of a checkpoint: its path inside, and the tensors in it by name."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def blocks(self) -> list[memoryview]:
        """Return the content of the file: its header, and the bytes of each tensor."""
        header, tensors = _header(self.tensors)
        return [
            memoryview(header),
            *(memoryview(_bytes_of(t.detach().cpu().contiguous()).numpy().data) for t in tensors),
        ]

    def snapshot(self, buffer: Tensor | None = None) -> "Snapshot":
        """Return the content of the file in host memory, which training no longer changes.

        Args:
            buffer: memory of a snapshot that is not needed any more, to be used again.
        """
        header, tensors = _header(self.tensors)
        size = len(header) + self.num_bytes
        if buffer is None or len(buffer) != size:
            buffer = torch.empty(size, dtype=torch.uint8)
        buffer[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        place = len(header)
        for tensor in tensors:
            end = place + tensor.numel() * tensor.element_size()
            buffer[place:end].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
            place = end
        return Snapshot(self.name, buffer)


class Snapshot(NamedTuple):
    """One file of a checkpoint, byte by byte: as many bytes of uint8."""

    name: str
    content: Tensor

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.content)

    def blocks(self) -> list[memoryview]:
        """Return the content of the file."""
        return [memoryview(self.content.numpy().data)]

    def snapshot(self, buffer: Tensor | None = None) -> "Snapshot":
        """Return itself: it is one already."""
        return self


class Written(NamedTuple):
    """Files that have been written, and may not be on disk yet."""

    files: dict[str, dict[str, int | str]]  # size and sha256 by name
    others: list[Path]  # files and folders that have to be on disk together with them


@contextmanager
def written(folder: Path, parts: Sequence[Part | Snapshot], *, step: int) -> Iterator[Written]:
    """Write the files of a step, which are on disk when the block is left.

    A checksum is of what was in memory, so that it also tells of what went wrong on the way.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        for parent in {(folder / part.name).parent for part in parts}:
            parent.mkdir(parents=True, exist_ok=True)
        descriptors: list[int] = []
        sizes: list[int] = []
        checksums: list[Future[str]] = []
        for part in parts:
            blocks = part.blocks()
            sizes.append(sum(block.nbytes for block in blocks))
            checksums.append(pool.submit(_sha256, blocks))
            file = stack.enter_context((folder / part.name).open("wb", buffering=0))
            _write_all(file.fileno(), blocks)
            fault_point("write", step=step)
            if hasattr(os, "posix_fadvise"):  # Linux
                # Begins to write, and does not wait: the disk works while the rest is prepared.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            descriptors.append(file.fileno())
        result = Written(
            {
                part.name: {"bytes": size, "sha256": checksum.result()}
                for part, size, checksum in zip(parts, sizes, checksums, strict=True)
            },
            [],
        )
        yield result
        # All at once: a file system writes its journal once then.
        on_disk = [pool.map(os.fsync, descriptors), pool.map(sync_path, result.others)]
        for each in on_disk:
            list(each)


class SavedLayer:
    """What a checkpoint holds of one layer, whichever ranks have written it."""

    def __init__(self, checkpoint: Path, layer: int) -> None:
        """Open a layer's files; only what is asked for is read from them.

        Raises:
            SafetensorError, OSError: a file is missing or no such file.
            ValueError: a tensor of the optimizer's files is no range, or overlaps another one, or
                a weight holds no floating-point numbers.
        """
        self.weights = safe_open(checkpoint / weights_name(layer), "pt")
        for name in self.names():
            if (dtype := self.weights.get_slice(name).get_dtype()) not in _DTYPES.values():
                raise ValueError(f"{name!r} is of type {dtype}")
        # Ranges of flattened parameters: (start, stop, file, tensor) by parameter and kind.
        self.ranges: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for path in sorted((checkpoint / OPTIMIZER).glob(f"layer-{layer:03d}.*")):
            file = safe_open(path, "pt")
            for key in file.keys():  # noqa: SIM118  not a mapping
                name, kind, start, size = _range(key, file.get_slice(key))
                self.ranges.setdefault((name, kind), []).append((start, start + size, file, key))
        for (name, kind), ranges in self.ranges.items():
            ranges.sort(key=lambda place: place[:2])
            for (_, stop, *_), (start, *_) in pairwise(ranges):
                if start < stop:
                    raise ValueError(f"element {start} of {kind} of {name!r} is there twice")

    def names(self) -> list[str]:
        """Return the names of the weights."""
        return sorted(self.weights.keys())

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a weight.

        Raises:
            SafetensorError: there is none of this name.
        """
        return torch.Size(self.weights.get_slice(name).get_shape())

    def weight(self, name: str, *, exact: bool) -> Tensor:
        """Return a flattened weight; `exact` asks for the fp32 master where one was saved.

        Raises:
            KeyError, SafetensorError: there is none of this name.
        """
        if exact and (name, MASTER) in self.ranges:
            return self.moment(name, MASTER, 0, self.shape(name).numel())
        return self.weights.get_tensor(name).view(-1)

    def moment(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Return a range of a flattened moment or master weight, shape (stop - start,), fp32.

        Raises:
            KeyError: the files do not hold all of it.
        """
        pieces = [
            (max(first, start), min(last, stop), first, file, key)
            for first, last, file, key in self.ranges.get((name, kind), [])
            if max(first, start) < min(last, stop)
        ]
        # They do not overlap. Before any memory is asked for: the names are not to be trusted.
        if missing := stop - start - sum(high - low for low, high, *_ in pieces):
            raise KeyError(f"{kind} of {name!r} lacks {missing} of {stop - start} elements")
        result = torch.empty(stop - start)
        for low, high, first, file, key in pieces:
            piece = file.get_slice(key)[low - first : high - first]
            result[low - start : high - start] = piece
        return result


def _range(key: str, content: Any) -> tuple[str, str, int, int]:
    """Return parameter, kind, start and size of a tensor `NAME/KIND/START` of optimizer state."""
    parts = re.fullmatch(r"(.+)/([^/]+)/([0-9]{1,18})", key)
    shape, dtype = content.get_shape(), content.get_dtype()
    if parts is None or dtype != "F32" or len(shape) != 1:
        raise ValueError(f"{key!r}, {dtype} of shape {shape}, is no range of optimizer state")
    return parts[1], parts[2], int(parts[3]), shape[0]


def _header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[Tensor]]:
    """Return the start of a safetensors file, and the tensors in the order in which they follow."""
    header: dict[str, object] = {}
    # The widest first, so that every tensor lies at a multiple of its element size.
    ordered = sorted(tensors.items(), key=_order)
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [tensor for _, tensor in ordered]


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _order(item: tuple[str, Tensor]) -> tuple[int, str]:
    return -item[1].element_size(), item[0]


def _sha256(blocks: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _write_all(descriptor: int, blocks: Sequence[memoryview]) -> None:
    # One call writes 2 GiB and 1024 blocks at most, and less on a disk that is about to be full.
    left = list(blocks)
    while left:
        written = os.writev(descriptor, left[:1024])
        while left and written >= left[0].nbytes:
            written -= left.pop(0).nbytes
        if left:
            left[0] = left[0][written:]
