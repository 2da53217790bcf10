"""The whole configuration: every section, and what must hold between sections."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydantic import Field

from megatron_gptx.config.batch import Batch, derive_batch
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.output import GenerationConfig, LoggingConfig, OutputConfig
from megatron_gptx.config.parallel import LaunchConfig, ParallelConfig
from megatron_gptx.config.section import Problem, Section
from megatron_gptx.config.training import (
    CheckpointConfig,
    EvaluationConfig,
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
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload",
    "zero_optimization.offload_param": "parallel.offload",
    "pipeline.activation_checkpoint_interval": "training.checkpoint_activations",
    "activation_checkpointing": "training.checkpoint_activations",
    "tensorboard": "logging.tensorboard",
    "wandb": "logging.wandb",
}


class Config(Section):
    """Everything that decides a run."""

    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    precision: Precision = Field(
        "fp32",
        description="Arithmetic of the layers; `bf16` and `fp16` keep fp32 master weights, `fp16` "
        "scales the loss dynamically.",
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    launch: LaunchConfig = Field(default_factory=LaunchConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="Handed to DeepSpeed as it is, except for keys that an option here decides.",
    )

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between sections."""
        try:
            _ = self.batch
        except ValueError as error:
            yield Problem("training.global_batch_size", str(error))
        yield from self._empty_stages()
        if self.schedule.warmup_steps >= self.training.steps:
            yield Problem(
                "schedule.warmup_steps",
                f"warmup_steps {self.schedule.warmup_steps} leaves none of the "
                f"{self.training.steps} training.steps",
            )
        for key, option in OWNED_BY_OPTIONS.items():
            value: Any = self.deepspeed
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                yield Problem(f"deepspeed.{key}", f"decided by {option}; set that instead")

    def _empty_stages(self) -> Iterator[Problem]:
        layers, stages = self.model.num_pipeline_layers, self.parallel.pipeline_stages
        if stages > layers:
            yield Problem(
                "parallel.pipeline_stages",
                f"{stages} stages for the {layers} layers of the model ({self.model.num_layers} "
                "blocks, the embedding and the head) would leave a stage empty",
            )
        inner = self.parallel.boundaries or []
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
