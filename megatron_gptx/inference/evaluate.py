"""Validation loss of a run's newest checkpoint."""

import argparse
import itertools
import json
import math
import sys
from typing import NamedTuple

import torch

from megatron_gptx.checkpoint.layout import Checkpoint
from megatron_gptx.config.batch import IGNORE, Batch
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.data.statistics import blend_entropy
from megatron_gptx.inference.load import load_model
from megatron_gptx.launcher.command import decode
from megatron_gptx.launcher.devices import local_device
from megatron_gptx.model.sequential import GPTXSequential


def main(prog: str | None = None) -> int:
    """Print the loss; the launcher passes the configuration."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        result = evaluate(decode(options.config))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(result._asdict()) + "\n")
    else:
        sys.stdout.write(
            f"step {result.step}: validation loss {result.valid_loss:.4f} nats per token, "
            f"perplexity {math.exp(result.valid_loss):.2f}\n"
            f"unigram entropy of that data: {result.unigram_entropy:.4f} nats per token\n"
        )
    return 0


class Evaluation(NamedTuple):
    """A model's loss beside the entropy of guessing each token by its frequency."""

    step: int
    valid_loss: float
    unigram_entropy: float


def evaluate(config: Config) -> Evaluation:
    """Return the validation loss of the run's newest checkpoint, in nats per token."""
    datasets = build_datasets(
        config.data, seq_length=config.model.seq_length, seed=config.training.seed
    )
    if datasets.valid is None:
        raise UserError("there is no validation data: set data.valid or data.split")
    model, checkpoint = load_model(config, torch.device(local_device(config)))
    batch = _batch_of_training(config, checkpoint)
    loader = StepLoader(
        datasets.valid,
        Batch(batch.global_size, batch.micro_size, batch.global_size // batch.micro_size),
        replica=0,
        replicas=1,
        vocab_size=config.model.vocab_size,
        prefetch=0,
    )
    loss = validation_loss(model, loader, config.evaluation.batches)
    entropy = blend_entropy(datasets.valid.datasets, datasets.valid.weights)
    return Evaluation(checkpoint.step, loss, entropy)


def _batch_of_training(config: Config, checkpoint: Checkpoint) -> Batch:
    # Undecided replicas were decided by the devices of the training run, not by those of this one.
    replicas = config.parallel.data_replicas or checkpoint.manifest["layout"].get("data_replicas")
    parallel = config.parallel.model_copy(update={"data_replicas": replicas})
    try:
        return config.model_copy(update={"parallel": parallel}).batch
    except ValueError as error:
        raise UserError(
            f"{checkpoint.path} was trained with {replicas} replicas: {error}"
        ) from None


@torch.inference_mode()
def validation_loss(model: GPTXSequential, loader: StepLoader, num_batches: int) -> float:
    """Return the mean loss per label over the first batches of a dataset."""
    device = next(model.parameters()).device
    total, num_labels = 0.0, 0
    for batch in itertools.islice(loader.steps(0), num_batches):
        for micro_batch in batch:
            tokens, labels, row_start = (
                None if part is None else part.to(device) for part in micro_batch
            )
            summed = model(tokens, labels, torch.ones((), device=device), row_start)
            total += summed.item()
            num_labels += int((micro_batch.labels != IGNORE).sum())
    return total / num_labels
