"""The whole configuration: every section, and what must hold between sections."""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from pydantic import Field

from megatron_gptx.config.batch import Batch, derive_batch
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import OpsConfig
from megatron_gptx.config.optimizers import OPTIMIZERS
from megatron_gptx.config.output import GenerationConfig, LoggingConfig, OutputConfig
from megatron_gptx.config.parallel import LaunchConfig, ParallelConfig
from megatron_gptx.config.secrets import names_secret
from megatron_gptx.config.section import Check, Problem, Section
from megatron_gptx.config.training import (
    CheckpointConfig,
    EvaluationConfig,
    GuardConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    TrainingConfig,
)

# DeepSpeed keys that an option of ours decides: given twice, one of the two would lose silently.
OWNED_BY_OPTIONS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16.enabled": "precision",
    "bf16.enabled": "precision",
    "data_types": "precision",
    "bf16.check_grad_overflow": "guard",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload",
    "zero_optimization.offload_param": "parallel.offload",
    "pipeline.activation_checkpoint_interval": "training.checkpoint_activations",
    "activation_checkpointing": "training.checkpoint_activations",
    "torch_autocast": "precision",
    "amp": "precision",
    "elasticity": "parallel",
    "checkpoint": "checkpoint",
    "zero_optimization.compute_grad_norm": "optimizer.gradient_clipping",
    "tensorboard": "logging.tensorboard",
    "wandb": "logging.wandb",
}


# Sections of DeepSpeed's that hold some of our settings: what is passed on must be mappings too.
SHARED_SECTIONS = ("zero_optimization", "fp16", "bf16", "pipeline")

# DeepSpeed's other options: it accepts any key, and ignores one that is misspelt.
PASSED_ON = (
    *SHARED_SECTIONS,
    *("prescale_gradients", "gradient_predivide_factor"),
    *("communication_data_type", "seq_parallel_communication_data_type", "steps_per_print"),
    *("wall_clock_breakdown", "dump_state", "memory_breakdown", "flops_profiler", "comms_logger"),
    *("csv_monitor", "comet", "aio", "compile", "data_efficiency", "use_node_local_storage"),
    *("timers", "zero_force_ds_cpu_optimizer", "disable_allgather", "hybrid_engine", "autotuning"),
)

# What DeepSpeed once had: a rank that finds one of them ends with DeepSpeed's own error.
REMOVED = (
    *("nebula", "compression_training", "quantize_training", "sparse_gradients", "eigenvalue"),
    *("sparse_attention", "graph_harvesting", "curriculum_learning", "progressive_layer_drop"),
    *("zero_optimization.mics_shard_size", "zero_optimization.mics_hierarchical_params_gather"),
    "zero_optimization.zeropp_loco_param",
)


class Config(Section):
    """Everything that decides a run."""

    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    precision: Precision = Field(
        "fp32",
        description="Arithmetic of the layers. `bf16` and `fp16` keep fp32 master weights; `fp16` "
        "also scales the loss dynamically.",
    )
    ops: OpsConfig = Field(default_factory=OpsConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    launch: LaunchConfig = Field(default_factory=LaunchConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to DeepSpeed unchanged. Keys that an option here decides are refused.",
    )

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for contradictions between sections."""
        return (
            self._batch_sizes,
            self._empty_stages,
            self._boundaries,
            self._warmup,
            self._whole_matrices,
            self._check_replicas,
            self._keep_best,
            self._deepspeed_keys,
            self._deepspeed_refused,
            self._deepspeed_owned,
        )

    def _batch_sizes(self) -> Iterator[Problem]:
        try:
            _ = self.batch
        except ValueError as error:
            yield Problem("training.global_batch_size", str(error))

    def _warmup(self) -> Iterator[Problem]:
        if self.training.steps and self.schedule.warmup_steps >= self.training.steps:
            yield Problem(
                "schedule.warmup_steps",
                f"warmup_steps {self.schedule.warmup_steps} leaves none of the "
                f"{self.training.steps} training.steps",
            )

    def _whole_matrices(self) -> Iterator[Problem]:
        name, largest = self.optimizer.name, OPTIMIZERS[self.optimizer.name].largest_zero_stage
        why = f"optimizer.name {name} updates whole matrices, which ZeRO cuts into ranges"
        if self.parallel.zero_stage > largest:
            yield Problem(
                "parallel.zero_stage",
                f"{why}: set zero_stage {largest}, or another optimizer, got "
                f"{self.parallel.zero_stage}",
            )
        if largest == 0 and self.precision != "fp32":
            yield Problem(
                "precision",
                f"{why}, and {self.precision} runs as ZeRO 1 for its master weights: set precision "
                "fp32, or another optimizer",
            )

    def _check_replicas(self) -> Iterator[Problem]:
        if self.training.check_replicas and self.parallel.zero_stage == 3:
            yield Problem(
                "training.check_replicas",
                "with parallel.zero_stage 3 no two ranks hold the same weights; leave it out",
            )

    def _keep_best(self) -> Iterator[Problem]:
        measured = self.data.valid is not None or self.data.split is not None
        if self.checkpoint.keep_best and not (measured and self.evaluation.interval):
            yield Problem(
                "checkpoint.keep_best",
                "no validation loss is measured during the run: set evaluation.interval, and "
                "data.valid or data.split",
            )

    def _deepspeed_keys(self) -> Iterator[Problem]:
        owned = {key.partition(".")[0] for key in OWNED_BY_OPTIONS}
        for key, value in self.deepspeed.items():
            near = get_close_matches(key, PASSED_ON, n=1, cutoff=0.8)
            if near and key not in (*PASSED_ON, *REMOVED, *owned):
                yield Problem(f"deepspeed.{key}", f"unknown key; did you mean {near[0]!r}?")
            if key in SHARED_SECTIONS and not isinstance(value, dict):
                yield Problem(f"deepspeed.{key}", f"expected a section with options, got {value!r}")

    def _deepspeed_refused(self) -> Iterator[Problem]:
        for key in _keys(self.deepspeed):
            if key in REMOVED:
                yield Problem(f"deepspeed.{key}", "DeepSpeed has removed this; leave it out")
            if names_secret(key.rpartition(".")[2]):
                yield Problem(
                    f"deepspeed.{key}",
                    "configurations are saved and shown in process lists; hand secrets over in the "
                    "environment",
                )

    def _deepspeed_owned(self) -> Iterator[Problem]:
        for key, option in OWNED_BY_OPTIONS.items():
            found: Any = self.deepspeed
            for part in key.split("."):
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                yield Problem(
                    f"deepspeed.{key}", f"is decided by the option {option}; set that instead"
                )

    def _empty_stages(self) -> Iterator[Problem]:
        layers, stages = self.model.num_pipeline_layers, self.parallel.pipeline_stages
        if stages > layers:
            yield Problem(
                "parallel.pipeline_stages",
                f"{stages} stages for the {layers} layers of the model ({self.model.num_layers} "
                "blocks, the embedding and the head) would leave a stage empty",
            )

    def _boundaries(self) -> Iterator[Problem]:
        layers, inner = self.model.num_pipeline_layers, self.parallel.boundaries or []
        edges = [0, *inner, layers]
        if inner and any(a >= b for a, b in pairwise(edges)):
            yield Problem(
                "parallel.boundaries",
                f"boundaries {inner} must rise strictly between 0 and {layers}, or a stage is "
                "empty",
            )

    @property
    def batch(self) -> Batch:
        """The batch triple; an undecided number of replicas counts as one."""
        return derive_batch(
            self.training.global_batch_size,
            self.training.micro_batch_size,
            self.training.accumulation_steps,
            replicas=self.parallel.data_replicas or 1,
        )


def _keys(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in _keys(value))
