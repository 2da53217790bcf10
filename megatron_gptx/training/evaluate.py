"""Validation loss."""

import itertools

from megatron_gptx.data.loader import StepLoader
from megatron_gptx.distributed.faults import fault_point
from megatron_gptx.distributed.watchdog import Watchdog
from megatron_gptx.training.engine import Engine


def evaluate(
    engine: Engine, loader: StepLoader, num_batches: int, *, watch: Watchdog, step: int
) -> float:
    """Return the mean loss per label over the first batches of a dataset, in nats.

    Always the same batches, so that two evaluations differ only by the weights. Each one is a phase
    of its own to the watchdog.
    """
    total, num_labels = 0.0, 0
    watch.begin("evaluation", step)
    for batch in itertools.islice(loader.steps(0), num_batches):
        watch.begin("evaluation", step)
        fault_point("evaluation", step=step)
        loss, labels = engine.evaluate(batch)
        total += loss * labels
        num_labels += labels
    return total / num_labels
