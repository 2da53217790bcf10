"""Validation loss."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from megatron_gptx.config.schema import Config
from megatron_gptx.data.blend import BlendedDataset
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.data.validation import (
    SetLoss,
    evaluation_steps,
    extents,
    mean_loss,
    over_all,
)
from megatron_gptx.distributed.fault_injection import fault_point
from megatron_gptx.distributed.watchdog import Watchdog
from megatron_gptx.training.engine import Engine


class Reading(NamedTuple):
    """The first samples of a dataset, and what reads them."""

    loader: StepLoader
    num_samples: int


Readings = Mapping[str, list[Reading]]


def validation_readings(
    config: Config,
    sets: Mapping[str, BlendedDataset],
    open_loader: Callable[[BlendedDataset], StepLoader],
) -> Readings:
    """Return what an evaluation of each validation set reads."""
    return {
        name: [
            Reading(open_loader(extent.dataset), extent.num_samples)
            for extent in extents(
                dataset, config.evaluation.training_batches, config.batch.global_size
            )
        ]
        for name, dataset in sets.items()
    }


def evaluate(
    engine: Engine, readings: Readings, *, watch: Watchdog, step: int
) -> dict[str, SetLoss]:
    """Return the mean loss per label of each validation set.

    Always the same batches, so that two evaluations differ only by the weights. Each one is a phase
    of its own to the watchdog.
    """
    watch.begin("evaluation", step)

    def losses(parts: list[Reading]) -> Iterator[tuple[float, int]]:
        for loader, num_samples in parts:
            for batch in evaluation_steps(loader, num_samples):
                watch.begin("evaluation", step)
                fault_point("evaluation", step=step)
                yield engine.evaluate(batch)

    return {name: mean_loss(losses(parts)) for name, parts in readings.items()}


def report(losses: Mapping[str, SetLoss], step: int) -> str:
    """Return what the screen shows of an evaluation."""
    lines = [
        f"step {step}: validation loss {f'of {name} ' if name else ''}{found.loss:.4f} "
        f"({found.extent})"
        for name, found in losses.items()
    ]
    if len(losses) > 1:
        lines.append(f"step {step}: mean validation loss {over_all(losses):.4f}")
    return "\n".join(lines)


def metrics(losses: Mapping[str, SetLoss]) -> dict[str, float]:
    """Return what a row of metrics holds of an evaluation."""
    named = {f"valid_loss/{name}": found.loss for name, found in losses.items() if name}
    return {"valid_loss": over_all(losses), **named}
