"""One face for DeepSpeed's two engines: a training step, an evaluation step."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data.loader import MicroBatch


class StepResult(NamedTuple):
    """What a training step leaves to report."""

    loss: float
    grad_norm: float
    applied: bool


class Engine(Protocol):
    """What the training loop and the checkpoints ask of an engine."""

    deepspeed: Any
    replica: int
    replicas: int
    # The processes that hold the same layers.
    replica_group: dist.ProcessGroup | None

    def train_step(self, batch: Sequence[MicroBatch], *, step: int, lr: float) -> StepResult:
        """Update the weights once from this replica's micro-batches."""

    def evaluate(self, batch: Sequence[MicroBatch]) -> tuple[float, int]:
        """Return the mean loss over all replicas' labels, and how many labels those are."""


class PipelineRun:
    """DeepSpeed's pipeline engine: 1F1B over the stages, gradients averaged over the replicas."""

    def __init__(self, engine: Any) -> None:
        self.deepspeed = engine
        grid = engine.grid
        self.replica, self.replicas = grid.get_data_parallel_id(), grid.data_parallel_size
        self.replica_group = grid.get_data_parallel_group()

    def train_step(self, batch: Sequence[MicroBatch], *, step: int, lr: float) -> StepResult:
        """Update the weights once from this replica's micro-batches."""
        set_learning_rate(self.deepspeed.optimizer, lr)
        self.deepspeed.module.runner.begin_step(step, self.replica)
        self._begin(batch)
        loss = self.deepspeed.train_batch(data_iter=self._items(batch)[0])
        return _result(self.deepspeed, loss)

    def evaluate(self, batch: Sequence[MicroBatch]) -> tuple[float, int]:
        """Return the mean loss over all replicas' labels, and how many labels those are."""
        self._begin(batch)
        items, num_labels = self._items(batch)
        # A 0-d tensor on the last stage, shape (1,) on the others.
        loss = self.deepspeed.eval_batch(items, num_micro_batches=len(batch))
        return loss.reshape(()).item(), int(num_labels.item())

    def _begin(self, batch: Sequence[MicroBatch]) -> None:
        starts = (micro_batch.row_start for micro_batch in batch)
        device = self.deepspeed.device
        self.deepspeed.module.begin_batch(
            [None if start is None else start.to(device) for start in starts]
        )

    def _items(
        self, batch: Sequence[MicroBatch]
    ) -> tuple[Iterator[tuple[Tensor, tuple[Tensor, Tensor]]], Tensor]:
        num_labels = count_labels(batch, self.replica_group, self.deepspeed.device)
        share = labels_per_micro_batch(num_labels, len(batch) * self.replicas)
        return iter([(one.tokens, (one.labels, share)) for one in batch]), num_labels


class SequentialRun:
    """DeepSpeed's plain engine: every replica runs all layers, ZeRO may share what they hold."""

    def __init__(self, engine: Any) -> None:
        self.deepspeed = engine
        self.replica, self.replicas = dist.get_rank(), dist.get_world_size()
        self.replica_group = dist.group.WORLD

    def train_step(self, batch: Sequence[MicroBatch], *, step: int, lr: float) -> StepResult:
        """Update the weights once from this replica's micro-batches."""
        set_learning_rate(self.deepspeed.optimizer, lr)
        self.deepspeed.train()
        self.deepspeed.module.runner.begin_step(step, self.replica)
        share, total = self._share(batch)[0], torch.zeros((), device=self.deepspeed.device)
        for micro_batch in batch:
            loss = self._loss(micro_batch, share)
            self.deepspeed.backward(loss)
            self.deepspeed.step()
            total += loss.detach()
        return _result(self.deepspeed, self._mean(total / len(batch)))

    def evaluate(self, batch: Sequence[MicroBatch]) -> tuple[float, int]:
        """Return the mean loss over all replicas' labels, and how many labels those are."""
        self.deepspeed.eval()
        share, num_labels = self._share(batch)
        with torch.no_grad():
            losses = [self._loss(micro_batch, share) for micro_batch in batch]
        return self._mean(torch.stack(losses).mean()).item(), int(num_labels.item())

    def _share(self, batch: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        num_labels = count_labels(batch, dist.group.WORLD, self.deepspeed.device)
        return labels_per_micro_batch(num_labels, len(batch) * self.replicas), num_labels

    def _loss(self, micro_batch: MicroBatch, share: Tensor) -> Tensor:
        tokens, labels, row_start = (
            None if part is None else part.to(self.deepspeed.device) for part in micro_batch
        )
        return self.deepspeed(tokens, labels, share, row_start)

    def _mean(self, loss: Tensor) -> Tensor:
        dist.all_reduce(loss)
        return loss / self.replicas


def count_labels(
    batch: Sequence[MicroBatch], replicas: dist.ProcessGroup | None, device: torch.device
) -> Tensor:
    """Return how many labels count in this step over all replicas, a scalar on `device`."""
    num_labels = torch.tensor(
        sum(int((one.labels != IGNORE).sum()) for one in batch), device=device
    )
    dist.all_reduce(num_labels, group=replicas)
    return num_labels


def labels_per_micro_batch(num_labels: Tensor, num_micro_batches: int) -> Tensor:
    """Return the divisor with which a plain mean of micro-batch losses is a mean over labels.

    DeepSpeed averages losses over micro-batches and replicas as if each had as many labels.
    """
    return num_labels.float().clamp(min=1) / num_micro_batches


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _result(engine: Any, loss: Tensor) -> StepResult:
    norm = engine.get_global_grad_norm()
    return StepResult(loss.item(), float(norm), engine.was_step_applied())
