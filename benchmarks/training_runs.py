"""What the benchmarks of training share: steps to learn from, and being the only rank of a run."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.data.loader import MicroBatch
from megatron_gptx.distributed.process import Process, run_worker

Step = list[MicroBatch]
WARMUP_STEPS = 5
ONE_RANK = "parallel.pipeline_stages=1 parallel.data_replicas=1 parallel.boundaries=null"


def random_steps(config: Config, number: int) -> list[Step]:
    """Return steps of tokens that are rarer the higher they are: there is that much to learn."""
    rows = (number, config.batch.accumulation_steps, config.batch.micro_size)
    weights = 1 / torch.arange(1.0, config.model.vocab_size + 1).repeat(math.prod(rows), 1)
    tokens = weights.multinomial(config.model.seq_length + 1, replacement=True).view(*rows, -1)
    return [[MicroBatch(m[:, :-1].contiguous(), m[:, 1:].contiguous()) for m in s] for s in tokens]


def loss_fall(name: str, losses: Sequence[float]) -> str:
    """Return how far the loss fell from the first step to the last one.

    Raises:
        UserError: it did not.
    """
    fall = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"
    if not losses[-1] < losses[0]:  # NaN is not below either
        raise UserError(f"{name} does not learn: {fall}; try another optimizer.lr")
    return fall


def as_only_rank(work: Callable[[Process], None], *, accelerator: str) -> None:
    """Do the work as a rank without peers; come back only if it succeeds."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", DS_ACCELERATOR=accelerator)
    # Port 0: the only rank listens where the system has room, and nobody has to find it.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    run_dir = Path(tempfile.mkdtemp(prefix="training-"))
    run_worker(work, run_dir=run_dir, launch=LaunchConfig())
    shutil.rmtree(run_dir)  # a failure never comes here: its message names the log in there
