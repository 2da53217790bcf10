"""Validation loss."""

import itertools

from megatron_gptx.data.loader import StepLoader
from megatron_gptx.training.engine import Engine


def evaluate(engine: Engine, loader: StepLoader, num_batches: int) -> float:
    """Return the mean loss per label over the first batches of a dataset, in nats.

    Always the same batches, so that two evaluations differ only by the weights.
    """
    total, num_labels = 0.0, 0
    for batch in itertools.islice(loader.steps(0), num_batches):
        loss, labels = engine.evaluate(batch)
        total += loss * labels
        num_labels += labels
    return total / num_labels
