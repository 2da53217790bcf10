"""Measure the data loader, in tokens per second and worker, against PyTorch's own.

Ours is what `train.py` reads from: one thread that reads steps ahead. Theirs is a DataLoader with
one worker process over a Dataset of the same memory-mapped windows in random order. Both take turns
in one run and deliver the same thing: micro-batches of int64 tokens and labels. Then both read a
larger file that is not in memory. Last, the start-up of a dataset of a trillion tokens is measured,
and how long a sample far ahead takes.
"""

import argparse
import gc
import itertools
import json
import os
import resource
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from megatron_gptx.config.batch import Batch
from megatron_gptx.data.blend import BlendedDataset
from megatron_gptx.data.fill_in_the_middle import FillInTheMiddle
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.mmididx import HEADER, MAGIC, bin_path, idx_path
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.files.write import write_aside

VOCAB_SIZE = 22_000
STEPS_FROM_DISK = 8
# What becomes of the documents, per line of the table.
SHAPES = {
    "stream": Shaping(),
    "stream, documents isolated": Shaping(isolate_documents=True),
    "until overflow, isolated": Shaping("until_overflow", isolate_documents=True),
    "one document per sample": Shaping("document"),
    "stream, half filled in the middle": Shaping(
        fill_in_the_middle=FillInTheMiddle(0.5, 0.5, 1, 2, 3, 0)
    ),
}


class Windows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The plainest Dataset over a token file: sample n is its n-th window."""

    def __init__(self, prefix: Path, seq_length: int) -> None:
        self.tokens = np.memmap(bin_path(prefix), np.uint16, mode="r")
        self.seq_length = seq_length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_length

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = number * self.seq_length
        window = self.tokens[start : start + self.seq_length + 1].astype(np.int64)
        return torch.from_numpy(window[:-1]), torch.from_numpy(window[1:])


class Scale(NamedTuple):
    """What one step holds."""

    seq_length: int
    micro_batch_size: int
    accumulation_steps: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.seq_length * self.micro_batch_size * self.accumulation_steps


def write_tokens(prefix: Path, num_tokens: int) -> None:
    """Write random ids in documents of the lengths that texts have, 600 tokens on average."""
    random = np.random.default_rng(0)
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        while writer.num_tokens < num_tokens:
            lengths = random.lognormal(5.7, 1.1, 1000).astype(np.int64) + 1
            ids = random.integers(4, VOCAB_SIZE, int(lengths.sum()), dtype=np.uint16)
            for document in np.split(ids, np.cumsum(lengths)[:-1]):
                writer.add_document(document)


def ours(dataset: GPTDataset | BlendedDataset, scale: Scale) -> Iterator[object]:
    """Return steps of our loader, read by one thread."""
    size = scale.micro_batch_size * scale.accumulation_steps
    loader = StepLoader(
        dataset,
        Batch(size, scale.micro_batch_size, scale.accumulation_steps),
        replica=0,
        replicas=1,
        vocab_size=VOCAB_SIZE,
        prefetch=2,
    )
    return loader.steps(0)


def theirs(prefix: Path, scale: Scale) -> Iterator[object]:
    """Return steps of PyTorch's loader, read by one process."""
    dataset = Windows(prefix, scale.seq_length)
    loader = DataLoader(
        dataset,
        batch_size=scale.micro_batch_size,
        sampler=RandomSampler(dataset),
        num_workers=1,
        drop_last=True,
        # A worker that cannot send a batch says so and goes on: nobody else would ever know.
        timeout=60,
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return iter(lambda: list(itertools.islice(batches, scale.accumulation_steps)), [])


def speed(steps: Iterator[object], scale: Scale, seconds: float) -> float:
    """Return tokens per second over about this long."""
    next(steps)  # a start-up is not what is measured
    number, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        next(steps)
        number += 1
    return number * scale.tokens / (time.perf_counter() - started_at)


def compare(prefix: Path, scale: Scale, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the speeds of both sides, measured in turns."""
    source = IndexedDataset(prefix)
    sides: dict[str, Callable[[], Iterator[object]]] = {
        name: lambda shaping=shaping: ours(  # type: ignore[misc]
            GPTDataset(source, scale.seq_length, seed=0, shaping=shaping), scale
        )
        for name, shaping in SHAPES.items()
    }
    halves = [
        GPTDataset(source, scale.seq_length, seed=0, first_document=first, last_document=last)
        for first, last in itertools.pairwise([0, source.num_documents // 2, source.num_documents])
    ]
    sides["stream, a blend of two"] = lambda: ours(BlendedDataset(halves, [0.7, 0.3]), scale)
    sides["PyTorch's DataLoader"] = lambda: theirs(prefix, scale)
    running = {name: start() for name, start in sides.items()}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, steps in running.items():
            speeds[name].append(speed(steps, scale, options.seconds))
    del running
    return speeds


def compare_from_disk(prefix: Path, scale: Scale) -> dict[str, float]:
    """Return the speeds of both sides over the first steps of a file that is not in memory."""
    starts: dict[str, Callable[[], Iterator[object]]] = {
        "stream": lambda: ours(GPTDataset(IndexedDataset(prefix), scale.seq_length, seed=0), scale),
        "PyTorch's DataLoader": lambda: theirs(prefix, scale),
    }
    speeds = {}
    for name, start in starts.items():
        with bin_path(prefix).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        steps = start()
        next(steps)
        started_at = time.perf_counter()
        for _ in range(STEPS_FROM_DISK):
            next(steps)
        speeds[name] = STEPS_FROM_DISK * scale.tokens / (time.perf_counter() - started_at)
        del steps
        gc.collect()  # what is mapped stays in memory
    return speeds


def write_trillion(prefix: Path) -> None:
    """Write the index of a trillion tokens, and a .bin that is one hole of 2 TB."""
    num_documents = length = 10**6
    with idx_path(prefix).open("wb") as index:
        index.write(HEADER.pack(MAGIC, 1, 8, num_documents, num_documents + 1))
        index.write(np.full(num_documents, length, "<i4").tobytes())
        index.write((2 * length * np.arange(num_documents, dtype="<i8")).tobytes())
        index.write(np.arange(num_documents + 1, dtype="<i8").tobytes())
    with bin_path(prefix).open("wb") as tokens:
        tokens.truncate(2 * 10**12)


def start_of_a_trillion(prefix: Path) -> dict[str, float]:
    """Return how long it takes to open it and to reach samples, and the most memory for that."""
    result: dict[str, float] = {}
    started_at = time.perf_counter()
    shaping = Shaping(isolate_documents=True)
    samples = GPTDataset(IndexedDataset(prefix), 2048, seed=0, shaping=shaping)
    samples.read_samples([0])
    result["first sample, seconds"] = time.perf_counter() - started_at
    found, read = [], []
    for number in range(200):
        position = 10**9 + number * 1_000_003
        started_at = time.perf_counter()
        samples.locate([position])
        found.append(time.perf_counter() - started_at)
        samples.read_samples([position])
        read.append(time.perf_counter() - started_at)
    result["to find sample 1e9, milliseconds"] = median(found) * 1e3
    result["to read it from the disk too"] = median(read) * 1e3
    tracemalloc.start()
    GPTDataset(IndexedDataset(prefix), 2048, seed=0, shaping=shaping).read_samples([10**9])
    result["peak of allocations, MB"] = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="in the file; default: 5e7")
    parser.add_argument(
        "--tokens-on-disk", type=int, default=250_000_000, help="in the larger one; default: 2.5e8"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; default: 5")
    parser.add_argument("--seconds", type=float, default=0.5, help="per turn; default: 0.5")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="loader_cpu-"))
    result: dict[str, object] = {}
    try:
        write_tokens(folder / "tokens", options.tokens)
        for scale in (Scale(2048, 8, 4), Scale(256, 4, 4)):
            title = (
                f"seq_length {scale.seq_length}, {scale.accumulation_steps} micro-batches of "
                f"{scale.micro_batch_size}"
            )
            print(f"{title}: million tokens per second and worker")
            speeds = compare(folder / "tokens", scale, options)
            their_median = median(speeds["PyTorch's DataLoader"])
            for name, values in speeds.items():
                ratio = median(values) / their_median
                print(f"  {name:<34}{median(values) / 1e6:>9.1f}{ratio:>8.1f}x")
            result[title] = speeds
        write_tokens(folder / "larger", options.tokens_on_disk)
        result["from disk"] = from_disk = compare_from_disk(folder / "larger", Scale(2048, 8, 4))
        print("the first of these from a file that is not in memory")
        for name, value in from_disk.items():
            print(f"  {name:<34}{value / 1e6:>9.1f}")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
        write_trillion(folder / "trillion")
        result["a trillion tokens"] = start = start_of_a_trillion(folder / "trillion")
        print("a trillion tokens in a million documents, isolated")
        for name, value in start.items():
            print(f"  {name:<34}{value:>9.2f}")
    finally:
        shutil.rmtree(folder)
    if options.output:
        write_aside(options.output, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
