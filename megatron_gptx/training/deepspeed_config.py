"""Our options in DeepSpeed's words. No other file knows what a DeepSpeed key means."""

from typing import Any

from megatron_gptx.config.schema import Config
from megatron_gptx.costs.memory import effective_zero_stage

# Elements that are reduced or gathered at once. DeepSpeed's own default would take gigabytes that
# no plan shows.
BUCKET_SIZE = 50_000_000
# Its sections that time or count a step.
MEASURING = {"wall_clock_breakdown", "flops_profiler", "memory_breakdown", "comms_logger"}


def deepspeed_config(config: Config) -> dict[str, Any]:
    """Return the dictionary that `deepspeed.initialize` takes."""
    batch, stage = config.batch, effective_zero_stage(config)
    settings: dict[str, Any] = {
        "train_batch_size": batch.global_size,
        "train_micro_batch_size_per_gpu": batch.micro_size,
        "gradient_accumulation_steps": batch.accumulation_steps,
        # Without ZeRO, DeepSpeed would clip every stage by its own norm: training/gradient_norm.py
        # does it instead.
        "gradient_clipping": (stage and config.optimizer.gradient_clipping) or 0.0,
        # What it measures it prints every so many steps; without a number that would be an error.
        "steps_per_print": 10 if MEASURING & config.deepspeed.keys() else None,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_SIZE,
            "allgather_bucket_size": BUCKET_SIZE,
            **_offload(config),
        },
        "zero_allow_untested_optimizer": True,
        # Plain AdamW on host memory is correct everywhere; DeepSpeed's own one has to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "checkpoint": {"load_universal": False},
    }
    if config.precision == "bf16":
        # Into the fp32 sums as soon as they are there. Otherwise DeepSpeed clears gradients when
        # backward reaches the pipeline's output, and the head, which lies behind it, never learns.
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 500}
    return _merge(settings, config.deepspeed)


def zero_stage_note(config: Config) -> str | None:
    """Return why DeepSpeed runs another ZeRO stage than the configured one, or None."""
    stage, wanted = effective_zero_stage(config), config.parallel.zero_stage
    if stage == wanted:
        return None
    return (
        f"ZeRO: stage {stage} instead of {wanted}, since {config.precision} keeps fp32 master "
        "weights, which DeepSpeed clips by one global norm and can resume only so"
    )


def _offload(config: Config) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": False}
    return {
        "none": {},
        "optimizer": {"offload_optimizer": host},
        "all": {"offload_optimizer": host, "offload_param": host},
    }[config.parallel.offload]


def _merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
