"""From a configuration to an engine: container, optimizer, DeepSpeed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import nn

from megatron_gptx.config.schema import Config
from megatron_gptx.costs.memory import effective_zero_stage
from megatron_gptx.costs.stages import boundaries
from megatron_gptx.distributed.process import Process
from megatron_gptx.model.backend import DTYPES, choose_backend
from megatron_gptx.model.pipeline import GPTXPipeline
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.ops.layer_norm import layer_norm_note
from megatron_gptx.training.deepspeed_config import deepspeed_config, zero_stage_note
from megatron_gptx.training.engine import Engine, PipelineRun, SequentialRun
from megatron_gptx.training.gradient_norm import GlobalNormClipping, let_stages_differ
from megatron_gptx.training.optimizer import build_optimizer


def build_engine(config: Config, process: Process, *, say: Callable[[str], None]) -> Engine:
    """Return an engine with freshly initialised weights; every rank calls this.

    Args:
        config: the run.
        process: this rank.
        say: takes one line for each automatic choice and its reason.
    """
    if note := zero_stage_note(config):
        say(note)
    say(layer_norm_note(process.device.type))
    build = _sequential if config.parallel.sequential else _pipelined
    return build(config, process, say)


def initialize(
    config: Config,
    model: nn.Module,
    process: Process,
    *,
    say: Callable[[str], None],
    clipping: GlobalNormClipping | None = None,
) -> Any:
    """Return DeepSpeed's engine of a model: kernels and optimizer chosen, weights on the device.

    `clipping` runs before each step of the optimizer.
    """
    choose_backend(
        model,
        config.model.attention,
        config.ops.backend,
        device_type=process.device.type,
        num_keys=config.model.seq_length,
        say=say,
    )
    offloaded = config.parallel.offload != "none"
    device = torch.device("cpu") if offloaded else process.device
    optimizer = build_optimizer(config, model, device, say)
    if clipping is not None:
        optimizer.register_step_pre_hook(clipping)
    filled = [bool(group["params"]) for group in optimizer.param_groups]
    settings = deepspeed_config(config)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    let_stages_differ(engine.optimizer, filled, process.device)
    return engine


def _sequential(config: Config, process: Process, say: Callable[[str], None]) -> SequentialRun:
    # Layer by layer, so that no process ever holds all weights of a model that ZeRO-3 scatters.
    prepare = None
    if effective_zero_stage(config) == 3:
        prepare = partial(_scatter, deepspeed_config(config), DTYPES[config.precision])
    model = GPTXSequential(
        config.model,
        seed=config.training.seed,
        checkpoint_group=config.training.checkpoint_activations,
        prepare=prepare,
    )
    return SequentialRun(initialize(config, model, process, say=say))


def _pipelined(config: Config, process: Process, say: Callable[[str], None]) -> PipelineRun:
    model = GPTXPipeline(
        config.model,
        edges=boundaries(config),
        replicas=process.world_size // config.parallel.pipeline_stages,
        seed=config.training.seed,
        checkpoint_group=config.training.checkpoint_activations,
    )
    clipping = None
    if effective_zero_stage(config) == 0:
        clipping = GlobalNormClipping(
            model.own_parameters(),
            num_layers=config.model.num_pipeline_layers,
            max_norm=config.optimizer.gradient_clipping,
            stages=model.stage_group(),
            device=process.device,
        )
    return PipelineRun(initialize(config, model, process, say=say, clipping=clipping))


def _scatter(settings: dict[str, Any], dtype: torch.dtype, layer: nn.Module) -> None:
    # DeepSpeed converts weights for 16 bits only where none are scattered yet.
    deepspeed.zero.Init(module=layer.to(dtype), config_dict_or_path=settings)
