"""Metrics of each layer, measured just before an update: of the weights that made the loss.

A metric is a function that records values of one layer from the parts of it that this rank holds,
and a line in `record_layers`. Over all ranks, the parts of a layer are the whole layer.
"""

from collections.abc import Sequence

import torch

from megatron_gptx.training.engine import Engine
from megatron_gptx.training.layer_parts import Part, own_parts
from megatron_gptx.training.recorder import Recorder


def record_layers(recorder: Recorder, engine: Engine, *, every: int) -> None:
    """Record the metrics of this rank's layers, in every so many steps."""
    if not recorder.due(every):
        return
    for index, parts in own_parts(engine):
        layer = f"layer-{index:03d}"
        record_gradient_norm(recorder, layer, parts)
        record_gates(recorder, layer, parts)


def record_gradient_norm(recorder: Recorder, layer: str, parts: Sequence[Part]) -> None:
    """Record the norm of a layer's gradient, before clipping."""
    for norm in torch._foreach_norm([part.gradient for part in parts]):
        recorder.record(f"grad_norm/{layer}", norm, reduce="norm")


def record_gates(recorder: Recorder, layer: str, parts: Sequence[Part]) -> None:
    """Record ReZero's gates, each of which starts at 0 and is one number."""
    for part in parts:
        branch, _, name = part.name.rpartition(".")
        if name == "gate":
            recorder.record(f"gate/{layer}/{branch}", part.weights)
