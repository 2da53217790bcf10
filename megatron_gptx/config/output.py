"""What a run leaves behind, and how it generates text."""

from collections.abc import Iterator

from pydantic import Field

from megatron_gptx.config.paths import PathText
from megatron_gptx.config.section import Check, Problem, Section


class OutputConfig(Section):
    """The run folder."""

    run_dir: PathText = Field(
        "",
        description="Folder for configuration, metrics, logs and checkpoints, such as `runs/1B`. "
        "A launch needs one. Use one folder per experiment: a start in a folder with "
        "checkpoints resumes from them.",
    )


class LoggingConfig(Section):
    """Besides metrics.jsonl, which is always written."""

    layer_interval: int | None = Field(
        None,
        gt=0,
        description="Steps between rows with metrics of each layer; null means none. "
        "`grad_norm/layer-003` is the norm of its gradient before clipping, and "
        "`gate/layer-003/add_attention` a gate of ReZero before the update. Layers are numbered "
        "as in checkpoints.",
    )
    tensorboard: bool = Field(False, description="Write TensorBoard events to RUN_DIR/tensorboard.")
    wandb: bool = Field(
        False,
        description="Log to Weights & Biases. `wandb login`, WANDB_API_KEY and WANDB_MODE decide "
        "whether wandb is online. Without a key or a connection it logs offline. All "
        "starts of a run are one wandb run; RUN_DIR/wandb-id holds its id.",
    )
    wandb_project: str = Field("gptx", description="Weights & Biases project.")
    wandb_name: str | None = Field(
        None, description="Name of the wandb run; null means WANDB_NAME, or the run folder's name."
    )
    wandb_group: str | None = Field(None, description="Group of the wandb run.")
    wandb_tags: list[str] = Field([], description="Tags of the wandb run.")


class GenerationConfig(Section):
    """How `generate.py` continues a prompt."""

    max_new_tokens: int = Field(128, gt=0, description="Largest number of tokens to add.")
    temperature: float = Field(
        1.0,
        ge=0,
        le=1_000_000,
        description="Softmax temperature. 0 is greedy; other values below 0.0001 are refused.",
    )
    top_k: int | None = Field(None, gt=0, description="Sample among the k most likely tokens.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Sample among the most likely tokens whose probabilities add up to this.",
    )
    seed: int = Field(0, ge=0, description="Seed of the samples.")

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for a temperature that float32 cannot divide logits by."""
        return (self._temperature,)

    def _temperature(self) -> Iterator[Problem]:
        if 0 < self.temperature < 1e-4:
            yield Problem(
                "temperature",
                f"{self.temperature:g} is so close to 0 that dividing by it overflows; use 0, "
                "which takes the likeliest token, or 0.0001 and more",
            )
