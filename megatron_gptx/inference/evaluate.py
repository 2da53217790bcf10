"""Validation loss of a run's checkpoint."""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch

from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.config.batch import IGNORE, Batch, derive_batch
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import EvaluationConfig, TrainingConfig
from megatron_gptx.data.build import build_validation
from megatron_gptx.data.loader import Step, StepLoader
from megatron_gptx.data.validation import (
    Extent,
    SetLoss,
    evaluation_steps,
    extents,
    mean_loss,
    over_all,
)
from megatron_gptx.dataset.statistics import blend_entropy
from megatron_gptx.inference.load import load_chosen
from megatron_gptx.launcher.arguments import script_parser
from megatron_gptx.launcher.command_line import decode
from megatron_gptx.launcher.devices import local_device
from megatron_gptx.model.sequential import GPTXSequential


def main(prog: str | None = None) -> int:
    """Print the loss; the launcher passes the configuration."""
    try:
        options = script_parser("evaluate.py", prog).parse(sys.argv[1:])
        result = evaluate(decode(options.config), wanted=options.checkpoint)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(as_json(result)) + "\n")
    else:
        sys.stdout.write(as_text(result))
    return 0


class SetResult(NamedTuple):
    """A model's loss on a validation set beside the entropy of guessing tokens by frequency."""

    found: SetLoss
    unigram_entropy: float


class Evaluation(NamedTuple):
    """What was measured of a checkpoint: each validation set by its name, "" where it has none.

    `other_in_training` says what an evaluation of the run itself takes, where it is not the same.
    """

    step: int
    sets: dict[str, SetResult]
    other_in_training: str | None

    @property
    def valid_loss(self) -> float:
        """The loss, or the mean of the losses of several sets."""
        return over_all({name: one.found for name, one in self.sets.items()})

    @property
    def unigram_entropy(self) -> float:
        """The entropy, or the mean of the entropies of several sets."""
        return sum(one.unigram_entropy for one in self.sets.values()) / len(self.sets)


def as_text(result: Evaluation) -> str:
    """Return a result for people."""
    lines = []
    for name, (found, entropy) in result.sets.items():
        of_set = f"of {name} " if name else ""
        loss = f"{found.loss:.4f} nats per token, perplexity {_perplexity(found.loss):.2f}"
        lines += [
            f"step {result.step}: validation loss {of_set}{loss}",
            f"measured on {found.extent}",
            f"unigram entropy of that data: {entropy:.4f} nats per token",
        ]
    if len(result.sets) > 1:
        lines.append(f"step {result.step}: mean validation loss {result.valid_loss:.4f}")
    if result.other_in_training:
        lines.append(result.other_in_training)
    return "\n".join(lines) + "\n"


def as_json(result: Evaluation) -> dict[str, Any]:
    """Return a result for programs; JSON has no NaN."""
    numbers: dict[str, Any] = {
        "step": result.step,
        "valid_loss": _finite(result.valid_loss),
        "unigram_entropy": result.unigram_entropy,
        "tokens": sum(one.found.num_tokens for one in result.sets.values()),
        "batches": sum(one.found.num_batches for one in result.sets.values()),
    }
    if list(result.sets) != [""]:
        numbers["sets"] = {
            name: {
                "valid_loss": _finite(one.found.loss),
                "unigram_entropy": one.unigram_entropy,
                "tokens": one.found.num_tokens,
                "batches": one.found.num_batches,
            }
            for name, one in result.sets.items()
        }
    return numbers


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def evaluate(config: Config, *, wanted: str | None = None) -> Evaluation:
    """Return the validation losses of a checkpoint, in nats per token.

    Where `evaluation.batches` is left open, the sequences are those that the run took in training.

    Args:
        config: the run.
        wanted: the checkpoint, as `choose_checkpoint` takes it.
    """
    sets = build_validation(config.data, seq_length=config.model.seq_length)
    model, checkpoint = load_chosen(config, wanted, torch.device(local_device(config)))
    batch = _with_its_replicas(config, checkpoint)
    own = in_training(checkpoint)
    batches = config.evaluation.batches
    size = own if batches is None else Size(batches, batch.global_size)
    results = {}
    for name, dataset in sets.items():
        parts = extents(dataset, size.batches, size.global_size)
        weights = dataset.weights
        if size.batches == "all":
            weights = [one.num_tokens / dataset.num_tokens for one in dataset.datasets]
        entropy = blend_entropy(dataset.datasets, weights)
        results[name] = SetResult(validation_loss(model, config, batch, parts), entropy)
    note = f"an evaluation in training took {own}: evaluation.batches null does so here"
    return Evaluation(checkpoint.step, results, None if str(size) == str(own) else note)


class Size(NamedTuple):
    """How much an evaluation takes."""

    batches: int | Literal["all"]
    global_size: int

    def __str__(self) -> str:
        if self.batches == "all":
            return "the whole validation data"
        return f"{self.batches:,} batches of {self.global_size:,} sequences"


def in_training(checkpoint: Checkpoint) -> Size:
    """Return what an evaluation took in the run that saved a checkpoint."""
    saved = checkpoint.manifest["config"]
    sizes = ("global_batch_size", "micro_batch_size", "accumulation_steps")
    try:
        # Not the whole sections, of which another version may know other options.
        evaluation = EvaluationConfig(batches=saved["evaluation"].get("batches"))
        training = TrainingConfig(**{name: saved["training"].get(name) for name in sizes})
        batch = derive_batch(
            training.global_batch_size,
            training.micro_batch_size,
            training.accumulation_steps,
            replicas=_replicas(checkpoint) or 1,
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # pydantic's is the first
        raise CheckpointError(
            f"{checkpoint.path}: the configuration saved in it is damaged, or of another version: "
            f"{error}"
        ) from None
    return Size(evaluation.training_batches, batch.global_size)


def _replicas(checkpoint: Checkpoint) -> int | None:
    return checkpoint.manifest["layout"].get("data_replicas")


def _with_its_replicas(config: Config, checkpoint: Checkpoint) -> Batch:
    # Undecided replicas were decided by the devices of the training run, not by those of this one.
    replicas = config.parallel.data_replicas or _replicas(checkpoint)
    parallel = config.parallel.model_copy(update={"data_replicas": replicas})
    try:
        return config.model_copy(update={"parallel": parallel}).batch
    except ValueError as error:
        raise UserError(
            f"{checkpoint.path} was trained with {replicas} replicas: {error}"
        ) from None


@torch.inference_mode()
def validation_loss(
    model: GPTXSequential, config: Config, batch: Batch, parts: list[Extent]
) -> SetLoss:
    """Return the mean loss per label over the first samples of some datasets."""
    device = next(model.parameters()).device
    alone = Batch(batch.global_size, batch.micro_size, batch.global_size // batch.micro_size)

    def losses() -> Iterator[tuple[float, int]]:
        for dataset, num_samples in parts:
            loader = StepLoader(
                dataset,
                alone,
                replica=0,
                replicas=1,
                vocab_size=config.model.vocab_size,
                prefetch=0,
            )
            for step in evaluation_steps(loader, num_samples):
                yield step_loss(step)

    def step_loss(step: Step) -> tuple[float, int]:
        total, num_labels = 0.0, 0
        for micro_batch in step:
            tokens, labels, row_start = (
                None if part is None else part.to(device) for part in micro_batch
            )
            total += model(tokens, labels, torch.ones((), device=device), row_start).item()
            num_labels += int((micro_batch.labels != IGNORE).sum())
        return total / max(num_labels, 1), num_labels

    return mean_loss(losses())
