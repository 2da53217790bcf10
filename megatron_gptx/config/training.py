"""What one step does, how many there are, and how the learning rate moves."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_gptx.config.errors import show
from megatron_gptx.config.optimizers import OPTIMIZERS, OptimizerName
from megatron_gptx.config.paths import PathText
from megatron_gptx.config.section import Check, Problem, Section

Precision = Literal["fp32", "bf16", "fp16"]
STARTS = ("auto", "intact", "fresh")


class TrainingConfig(Section):
    """Batch sizes and length of a run."""

    steps: int | None = Field(
        None, gt=0, description="Optimizer steps in the whole run. Give either this or `epochs`."
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Passes over the training data. A pass over a blend has as many samples as "
        "its datasets have together.",
    )
    global_batch_size: int | None = Field(
        None, gt=0, description="Sequences per step over all replicas; null derives it."
    )
    micro_batch_size: int | None = Field(
        None, gt=0, description="Sequences per forward pass of one replica; null derives it."
    )
    accumulation_steps: int | None = Field(
        None,
        gt=0,
        description="Gradient accumulation: micro-batches per replica and step; null derives it.",
    )
    time_limit_minutes: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Minutes, restarts included, after which a launch saves and ends with status "
        "75; null sets no limit.",
    )
    seed: int = Field(1234, ge=0, lt=2**31, description="Seed of weights, dropout and data order.")
    checkpoint_activations: int = Field(
        0,
        ge=0,
        description="Recompute activations in the backward pass, in groups of this many layers. 0 "
        "keeps all activations.",
    )
    deterministic: bool = Field(
        False,
        description="Use only algorithms that give the same bits every time. An operation without "
        "one ends the run and is named.",
    )
    check_replicas: int | None = Field(
        None,
        gt=0,
        description="Steps between comparisons of the weights of all replicas, bit by bit. They "
        "are also compared before each save. null never compares them.",
    )

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for a run of no stated length, or of two."""
        return (self._length,)

    def _length(self) -> Iterator[Problem]:
        if self.steps is None and self.epochs is None:
            yield Problem("steps", "required option is missing: give steps, or epochs")
        if self.steps is not None and self.epochs is not None:
            yield Problem("epochs", "give either steps or epochs, not both")


def _of_some(option: str, meaning: str) -> str:
    """Return the description of an option that not every optimizer has."""
    owners: dict[str, list[str]] = {}
    for name, facts in OPTIMIZERS.items():
        if option in facts.options:
            owners.setdefault(json.dumps(facts.options[option]), []).append(f"`{name}`")
    defaults = (f"{default} for {' and '.join(names)}" for default, names in owners.items())
    return f"{meaning}; null means {', '.join(defaults)}."


class OptimizerConfig(Section):
    """The optimizer. It refuses other optimizers' options. Gates, norms and biases never decay."""

    name: OptimizerName = Field(
        "adamw",
        description="`adamw`. `lion` is Algorithm 2 of arXiv:2302.06675; the paper takes a rate 3 "
        "to 10 times lower, and a weight decay as many times higher. `muon` is that of "
        "arXiv:2502.16982: it orthogonalises the momentum of the blocks' matrices, and AdamW "
        "updates the rest at the same rate. `muon` needs precision fp32 and zero_stage 0.",
    )
    lr: float = Field(gt=0, le=1_000_000, description="Peak learning rate.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description=_of_some(
            "betas", "Decay of AdamW's two moments, or of Lion's update and of its momentum"
        ),
    )
    eps: float | None = Field(
        None,
        ge=1e-30,
        le=1,
        description=_of_some("eps", "Added to the root of AdamW's second moment"),
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description=_of_some("momentum", "Decay of the momentum of matrices")
    )
    nesterov: bool | None = Field(
        None, description=_of_some("nesterov", "Look ahead by one step of that momentum")
    )
    newton_schulz_steps: int | None = Field(
        None,
        gt=0,
        le=100,
        description=_of_some("newton_schulz_steps", "Iterations that orthogonalise a matrix"),
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of weight matrices.")
    decay_embeddings: bool = Field(False, description="Decay embedding tables as well.")
    gradient_clipping: float | None = Field(
        1.0, ge=1e-12, description="Largest global gradient norm; null does not clip."
    )

    @model_validator(mode="before")
    @classmethod
    def _write_out_defaults(cls, values: Any) -> Any:
        """Fill in the optimizer's own options, so that a saved configuration tells them."""
        name = values.get("name", "adamw") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in OPTIMIZERS:
            return values
        own = OPTIMIZERS[name].options.items()
        return values | {key: default for key, default in own if values.get(key) is None}

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for options of another optimizer."""
        return (self._foreign_options,)

    def _foreign_options(self) -> Iterator[Problem]:
        for option in {option: None for facts in OPTIMIZERS.values() for option in facts.options}:
            if getattr(self, option) is not None and option not in OPTIMIZERS[self.name].options:
                owners = [name for name, facts in OPTIMIZERS.items() if option in facts.options]
                yield Problem(
                    option,
                    f"is an option of {' and '.join(owners)}, and optimizer.name is {self.name}; "
                    "leave it out",
                )

    @property
    def own_options(self) -> dict[str, Any]:
        """The options that this optimizer has, by name."""
        values = {
            "betas": self.betas,
            "eps": self.eps,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "newton_schulz_steps": self.newton_schulz_steps,
        }
        return {option: values[option] for option in OPTIMIZERS[self.name].options}


class ScheduleConfig(Section):
    """Learning rate as a function of the step."""

    name: Literal["cosine", "linear", "constant", "wsd", "one_cycle"] = Field(
        "cosine",
        description="Shape after warm-up: `cosine` or `linear` decay, `constant`, `wsd` (constant, "
        "then linear decay over decay_steps), `one_cycle` (cosine up, cosine down).",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of rise to the peak.")
    decay_steps: int | None = Field(
        None,
        gt=0,
        description="Steps of decay. null means all steps after warm-up; for `wsd`, a tenth of "
        "the run.",
    )
    min_lr_ratio: float = Field(
        0.1, ge=0, le=1, description="Final learning rate divided by the peak."
    )


class CheckpointConfig(Section):
    """When checkpoints are saved, which are kept, and from which one a start resumes."""

    interval: int = Field(
        1000, gt=0, description="Steps between saves. The last step is always saved."
    )
    asynchronous: bool = Field(
        False,
        description="Copy the state to host memory, and write it while training continues. The "
        "copy takes as much memory as the checkpoint.",
    )
    keep_last: int | None = Field(
        3, gt=0, description="Newest checkpoints to keep; null keeps all."
    )
    keep_every: int | None = Field(
        None, gt=0, description="Also keep every checkpoint whose step is a multiple of this."
    )
    keep_steps: list[Annotated[int, Field(gt=0)]] = Field(
        [], description="Also save at these steps, and keep those checkpoints."
    )
    on_failure: Literal["continue", "stop"] = Field(
        "continue",
        description="What the run does if a checkpoint cannot be written. If it is the last one, "
        "the run always ends with an error.",
    )
    keep_best: bool = Field(
        False,
        description="Save after each evaluation with the lowest validation loss so far, and keep "
        "the best checkpoint. It needs `evaluation.interval`.",
    )
    start: str = Field(
        "auto",
        description="`auto` resumes from the newest checkpoint in the run folder, if there is "
        "one, and stops if it is damaged. `intact` skips damaged checkpoints. `fresh` "
        "refuses to start if there is a checkpoint; restarts of the same run, also by "
        "SLURM, still resume. `step-N` goes back to the checkpoint of step N, once "
        "per launch, whatever its restarts.",
    )
    accept_changes: bool = Field(
        False,
        description="Resume although the seed, training data, split or tokenizer has changed "
        "since the checkpoint. This mixes two experiments.",
    )
    initialize_from: PathText | None = Field(
        None,
        min_length=1,
        description="Another run's folder, or one of its checkpoints. A run without a checkpoint "
        "of its own starts from those weights, at step 0 and with a new optimizer "
        "state.",
    )
    upload: str | None = Field(
        None,
        min_length=1,
        description="fsspec URL (`s3://BUCKET/FOLDER`) to which each checkpoint is copied in the "
        "background. Credentials come from the environment. Nothing is deleted there.",
    )

    @field_validator("start")
    @classmethod
    def _start_is_a_word_or_a_step(cls, start: str) -> str:
        if start in STARTS or re.fullmatch(r"step-[0-9]{1,18}", start):
            return start
        raise ValueError(
            f"should be {', '.join(map(repr, STARTS))} or a step such as 'step-5000', got {start!r}"
        )

    @property
    def start_step(self) -> int | None:
        """The step whose checkpoint a start goes back to, or None where it names none."""
        return None if self.start in STARTS else int(self.start.removeprefix("step-"))

    @property
    def begins(self) -> bool:
        """Whether a start begins something that only its own restarts go on with."""
        return self.start not in ("auto", "intact")

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for a URL with a secret in it: configurations are saved and shown."""
        return (self._upload,)

    def _upload(self) -> Iterator[Problem]:
        if self.upload and re.search(r"://[^/@]*:.*@|[?]", self.upload):
            yield Problem(
                "upload",
                "a URL must hold no password and no query: hand secrets over in the environment",
            )


_DEFAULT_BATCHES = 16


class EvaluationConfig(Section):
    """Validation loss."""

    interval: int | None = Field(
        None, gt=0, description="Steps between evaluations; null evaluates only at the end."
    )
    batches: Annotated[int, Field(gt=0)] | Literal["all"] | None = Field(
        None,
        description="Global batches per evaluation; `all` uses the whole validation data once. "
        "null means 16 in training. In `evaluate.py`, null means as many as in "
        "training.",
    )

    @field_validator("batches", mode="before")
    @classmethod
    def _batches_are_a_number_or_all(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not number and value not in ("all", None):
            raise ValueError(f"should be a whole number above 0, or all, got {show(value)}")
        return value

    @property
    def training_batches(self) -> int | Literal["all"]:
        """How many batches an evaluation of a training run takes."""
        return self.batches or _DEFAULT_BATCHES


class GuardConfig(Section):
    """What a run does if steps go wrong. A step whose gradients are not finite is never applied."""

    max_bad_steps: int = Field(
        10,
        gt=0,
        description="Consecutive bad steps after which the run rolls back to its newest "
        "checkpoint and skips the samples since then. A step is bad if its loss or "
        "gradients are not finite, or if its loss is a spike.",
    )
    max_rewinds: int = Field(
        3,
        ge=0,
        description="How often a run may roll back before it ends with an error. Stops and "
        "restarts do not reset this count.",
    )
    spike_factor: float | None = Field(
        None,
        gt=1,
        description="A loss above this many times the median of the last 100 is bad too. The step "
        "of such a loss has been applied already. null only looks for values that are "
        "not finite.",
    )
