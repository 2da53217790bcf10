"""What an evaluation reads: the first samples of a validation set, or all of them once."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data.blend import BlendedDataset
from megatron_gptx.data.loader import MicroBatch, Step, StepLoader


class Extent(NamedTuple):
    """The first samples of a dataset."""

    dataset: BlendedDataset
    num_samples: int


class SetLoss(NamedTuple):
    """The mean loss per token of a validation set, in nats, and what it was measured on."""

    loss: float
    num_tokens: int
    num_batches: int

    @property
    def extent(self) -> str:
        """What it was measured on, as text."""
        batches = "1 batch" if self.num_batches == 1 else f"{self.num_batches:,} batches"
        return f"{self.num_tokens:,} tokens in {batches}"


def extents(
    dataset: BlendedDataset, batches: int | Literal["all"], global_size: int
) -> list[Extent]:
    """Return what an evaluation of a dataset reads; `all` is each of a blend's datasets once."""
    if batches != "all":
        return [Extent(dataset, batches * global_size)]
    return [Extent(BlendedDataset([one], [1.0]), one.samples_per_epoch) for one in dataset.datasets]


def evaluation_steps(loader: StepLoader, num_samples: int) -> Iterator[Step]:
    """Yield the steps with the first samples; of others in the last one, no label counts."""
    (global_size, size, _), replicas = loader.batch, loader.replicas
    for number, step in enumerate(islice(loader.steps(0), math.ceil(num_samples / global_size))):
        left = num_samples - number * global_size
        if left >= global_size:
            yield step
        else:
            yield [
                _only_first(one, left - (place * replicas + loader.replica) * size)
                for place, one in enumerate(step)
            ]


def _only_first(micro_batch: MicroBatch, count: int) -> MicroBatch:
    """Return a micro-batch of which no label counts but those of the first samples."""
    labels = micro_batch.labels.clone()
    labels[max(count, 0) :] = IGNORE
    return micro_batch._replace(labels=labels)


def mean_loss(found: Iterator[tuple[float, int]]) -> SetLoss:
    """Return the mean of batches' losses, each of which has so many labels."""
    total, num_tokens, num_batches = 0.0, 0, 0
    for loss, labels in found:
        total += loss * labels
        num_tokens += labels
        num_batches += 1
    # Nothing to learn gives no loss; a row of metrics says null then.
    return SetLoss(total / num_tokens if num_tokens else math.nan, num_tokens, num_batches)


def over_all(losses: Mapping[str, SetLoss]) -> float:
    """Return one number for all validation sets: the mean of their losses."""
    return sum(one.loss for one in losses.values()) / len(losses)
