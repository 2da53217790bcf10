"""Optimizer steps' worth of micro-batches, read ahead of the step that needs them."""

from collections import deque
from collections.abc import Iterator
from itertools import chain, takewhile
from threading import Condition, Thread
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_gptx.config.batch import Batch
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.blend import BlendedDataset
from megatron_gptx.data.gpt_dataset import GPTDataset, Samples


class MicroBatch(NamedTuple):
    """One forward pass.

    Attributes:
        tokens: (b, s) int64 ids.
        labels: (b, s) int64, the ids that follow; IGNORE where nothing is to be learned.
        row_start: (b, s) int32, the first token that each one sees, which is the first of its
            document; None where it sees all before it.
    """

    tokens: Tensor
    labels: Tensor
    row_start: Tensor | None = None


Step = list[MicroBatch]
# Steps with fewer tokens are read several at once: what a read costs whatever its size, and handing
# over from one thread to another, would take longer than the reading itself.
_TOKENS_TOGETHER = 1 << 16


class StepLoader:
    """This replica's share of every step, in a global order that knows no replicas.

    The step that starts at global sample n uses samples n to n + global_size - 1. Micro-batch m of
    replica r holds the `micro_size` samples from n + (m * replicas + r) * micro_size on.

    Reading is a copy out of a memory map, so one thread is enough to stay ahead of any model; it
    leaves no process and no shared memory behind. Its errors are raised where the step is taken.

    Args:
        dataset: samples by position.
        batch: the sizes of a step.
        replica: this replica's number.
        replicas: how many there are.
        vocab_size: ids at or above it are an error, found before they reach the embedding.
        prefetch: steps read ahead, or of small ones groups of steps; 0 reads in line, without a
            thread.
    """

    def __init__(
        self,
        dataset: GPTDataset | BlendedDataset,
        batch: Batch,
        *,
        replica: int,
        replicas: int,
        vocab_size: int,
        prefetch: int,
    ) -> None:
        assert 0 <= replica < replicas, (replica, replicas)
        assert batch.global_size == batch.micro_size * batch.accumulation_steps * replicas, batch
        self.dataset, self.batch = dataset, batch
        self.replica, self.replicas = replica, replicas
        self.vocab_size, self.prefetch = vocab_size, prefetch
        self._running: list[_ReadAhead] = []

    def steps(self, first_sample: int) -> Iterator[Step]:
        """Return an endless iterator over steps from a global sample on, the first one included.

        Each step is a list of `accumulation_steps` micro-batches. The iterator may simply be
        dropped, or ended with its `close`.
        """
        groups = self._read_groups(first_sample)
        return self._ahead(groups) if self.prefetch else chain.from_iterable(groups)

    def close(self) -> None:
        """End all reading ahead and wait for the threads."""
        for reader in list(self._running):
            reader.close()

    def __enter__(self) -> "StepLoader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_groups(self, first_sample: int) -> Iterator[list[Step]]:
        size, replicas = self.batch.micro_size, self.replicas
        firsts = (np.arange(self.batch.accumulation_steps) * replicas + self.replica) * size
        offsets = (firsts[:, None] + np.arange(size)).ravel()
        most = max(1, _TOKENS_TOGETHER // (offsets.size * self.dataset.seq_length))
        together = 1  # more and more, so that nobody waits for the first ones, or reads for nothing
        while True:
            ahead = np.arange(together)[:, None] * self.batch.global_size
            steps = first_sample + ahead + offsets
            try:
                group = self._read(steps)
            except UserError:  # raised where its own step is needed, and not before
                yield from (self._read(steps[i : i + 1]) for i in range(together))
            else:
                yield group
            first_sample += together * self.batch.global_size
            together = min(2 * together, most)

    def _read(self, steps: npt.NDArray[np.int64]) -> list[Step]:
        """Return the steps with the samples at (steps, samples) positions."""
        # All at once, which costs a fraction of one micro-batch after the other.
        positions = steps.ravel()
        samples = self.dataset.read_samples(positions)
        self._check_ids(positions, samples)
        count = self.batch.accumulation_steps
        columns = (
            [None] * (count * len(steps))
            if part is None
            else torch.from_numpy(part).split(self.batch.micro_size)
            for part in samples
        )
        read = list(map(MicroBatch, *columns))
        return [read[i : i + count] for i in range(0, len(read), count)]

    def _check_ids(self, positions: npt.NDArray[np.int64], samples: Samples) -> None:
        low = int(samples.tokens.min())
        high = max(int(samples.tokens.max()), int(samples.labels.max()))
        if low >= 0 and high < self.vocab_size:
            return
        bad = (samples.tokens < 0) | (np.maximum(*samples[:2]) >= self.vocab_size)
        prefix = self.dataset.prefix_of(int(positions[bad.any(axis=1).argmax()]))
        raise UserError(
            f"{prefix}: token id {low if low < 0 else high} is outside the model's vocabulary of "
            f"{self.vocab_size}; set model.vocab_size to at least {high + 1}, or use the dataset "
            "of this model's tokenizer"
        )

    def _ahead(self, groups: Iterator[list[Step]]) -> Iterator[Step]:
        reader = _ReadAhead(groups, self.prefetch)
        self._running.append(reader)
        try:
            while (group := reader.take()) is not None:
                yield from takewhile(lambda _: not reader.closed, group)
        finally:
            reader.close()
            self._running.remove(reader)


class _ReadAhead:
    """A thread that keeps up to `depth` groups of steps ready."""

    def __init__(self, source: Iterator[list[Step]], depth: int) -> None:
        self._source, self._depth = source, depth
        self._ready: deque[list[Step]] = deque()
        self._changed = Condition()
        self.closed = False
        self._error: BaseException | None = None
        # A daemon: a rank that dies of another error must not wait for a thread it forgot.
        self._thread = Thread(target=self._fill, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self) -> list[Step] | None:
        """Return the next group, None when closed; raise what the thread raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self.closed)
            if self.closed:
                return None
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        assert self._error is not None
        raise self._error

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _fill(self) -> None:
        try:
            while self._has_room():
                group = next(self._source)
                with self._changed:
                    self._ready.append(group)
                    self._changed.notify_all()
        except BaseException as error:  # handed to the consumer, whatever it is
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._ready) < self._depth)
            return not self.closed
