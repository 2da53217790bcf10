"""What a checkpoint says of the run that saves it."""

from collections.abc import Mapping
from typing import Any

import torch

from megatron_gptx import __version__
from megatron_gptx.checkpoint.optimizer_state import get_loss_scale, get_steps
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.stages import boundaries


def describe_run(
    engine: Any, config: Config, *, run_id: str, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the part of a manifest that knows nothing of this step's files and counters."""
    import deepspeed

    return {
        "run": run_id,
        "optimizer": {"steps": get_steps(engine), "loss_scale": get_loss_scale(engine)},
        "layout": _layout(config),
        "config": config.model_dump(),
        "data": data,
        "versions": {
            "megatron_gptx": __version__,
            "torch": str(torch.__version__),
            "deepspeed": deepspeed.__version__,
        },
    }


def _layout(config: Config) -> dict[str, Any]:
    """Return which ranks have written: what people ask, and loading does not depend on."""
    return {
        "pipeline_stages": config.parallel.pipeline_stages,
        "data_replicas": config.parallel.data_replicas,
        "zero_stage": config.parallel.zero_stage,
        "precision": config.precision,
        "boundaries": boundaries(config),
    }
