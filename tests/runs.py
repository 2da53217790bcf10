"""Real training runs of a tiny model: gloo ranks on the CPU, forked from a warm server.

Importing DeepSpeed takes seconds, so a server process imports it once and every rank is forked
from there. Apart from the launcher, a rank is what `deepy.py` starts. Ranks on GPUs are processes
of their own from the start: a fork of one that has looked for GPUs cannot use them.
"""

import fcntl
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.corpus.worker_pool import shorten_socket_names
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.launcher.command_line import encode, free_port

VOCAB_SIZE = 64

TINY: dict[str, Any] = {
    "model.num_layers": 4,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.vocab_size": VOCAB_SIZE,
    "model.seq_length": 32,
    "model.macaron": True,
    # Wide enough that attention is far from uniform, so that a wrong score changes the loss.
    "model.init_std": 0.3,
    "model.attention.top_k": 8,
    "model.attention.residual_scores": True,
    "training.steps": 20,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 2,
    "optimizer.lr": 0.01,
    "optimizer.gradient_clipping": None,
    "schedule.warmup_steps": 2,
    "parallel.zero_stage": 0,
    "parallel.data_replicas": 1,
    "checkpoint.interval": 1000,
    "evaluation.batches": 2,
    "launch.device": "cpu",
    "launch.timeout_seconds": 60,
}


def write_corpus(folder: Path) -> None:
    """Write train and valid datasets of arithmetic progressions, which a tiny model can learn."""
    random = np.random.default_rng(0)
    for name, num_documents in (("train", 200), ("valid", 30)):
        with IndexedDatasetWriter(folder / name, np.uint16) as writer:
            for _ in range(num_documents):
                start, stride, length = random.integers((0, 1, 20), (64, 4, 200))
                writer.add_document((start + stride * np.arange(length)) % VOCAB_SIZE)


def tiny_config(corpus: Path, run_dir: Path, **options: Any) -> Config:
    """Return the tiny configuration; options replace some, written with `__` for a dot."""
    flat = {
        **TINY,
        "data.train": str(corpus / "train"),
        "data.valid": str(corpus / "valid"),
        "output.run_dir": str(run_dir),
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return Config.model_validate(tree)


def train(config: Config) -> list[dict[str, float]]:
    """Run all ranks of a configuration and return the rows of its metrics.jsonl.

    Fails the test, showing the ranks' logs, where a rank ends with an error.
    """
    statuses = start(config)
    run_dir = Path(config.output.run_dir)
    if any(statuses):
        logs = [path.read_text()[-3000:] for path in sorted((run_dir / "logs").glob("rank-*.log"))]
        pytest.fail(f"ranks ended with {statuses}\n" + "\n".join(logs))
    return _rows(run_dir)


def _rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class Finished(NamedTuple):
    """A run that has ended, in a folder that nobody writes into."""

    config: Config
    rows: list[dict[str, float]]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.output.run_dir)

    @property
    def losses(self) -> list[float]:
        """Its training losses."""
        return losses(self.rows)

    def copy(self, run_dir: Path) -> Path:
        """Copy the run to where a test may change it or go on from it."""
        return Path(shutil.copytree(self.folder, run_dir, dirs_exist_ok=True))


def train_once(config: Config, shared: Path) -> Finished:
    """Train in a folder of `shared`; where a process has done so already, read what it found."""
    assert not os.environ.get("GPTX_FAULT"), "a run with a fault is no other one's"
    options = config.model_dump_json(exclude={"output": {"run_dir"}})
    folder = shared / f"run-{hashlib.sha256(options.encode()).hexdigest()[:16]}"
    output = config.output.model_copy(update={"run_dir": str(folder)})
    config = config.model_copy(update={"output": output})
    make_once(folder, lambda: train(config))
    return Finished(config, _rows(folder))


def make_once(folder: Path, make: Callable[[], object]) -> None:
    """Have a folder filled by the first process that comes here; the others wait for it."""
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make()
            done.touch()


def start(config: Config, *, screen: Path | None = None) -> list[int | None]:
    """Train all ranks of a configuration and return their exit statuses."""
    ranks = config.parallel.pipeline_stages * (config.parallel.data_replicas or 1)
    device = config.launch.device
    return start_ranks(train_rank, ranks, encode(config), screen=screen, device=device)


def start_ranks(
    work: Callable[..., None],
    ranks: int,
    *arguments: Any,
    screen: Path | None = None,
    device: str = "cpu",
) -> list[int | None]:
    """Run `work(*arguments)` on ranks and return their exit statuses.

    As in the launcher of a node, the first one that fails ends the others within a second. What
    people would see is written to `screen`.
    """
    port = free_port()
    # The server, and with it a rank, does not see what a test sets.
    fault = os.environ.get("GPTX_FAULT", "")
    context = _server() if device == "cpu" else multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_rank,
            args=(rank, ranks, port, screen or os.devnull, fault, device, work, arguments),
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    while alive := [process for process in processes if process.is_alive()]:
        connection.wait([process.sentinel for process in alive])
        if any(process.exitcode for process in processes):
            deadline = time.monotonic() + 1
            for process in alive:
                process.join(max(0, deadline - time.monotonic()))
            for process in alive:
                process.terminate()
                process.join()
    return [process.exitcode for process in processes]


def losses(rows: list[dict[str, float]]) -> list[float]:
    """Return the training losses of a run."""
    return [row["loss"] for row in rows]


def without_speed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of a run that are the same whenever it runs."""
    clocks = {"tokens_per_second", "data_seconds"}
    return [{key: row[key] for key in row.keys() - clocks} for row in rows]


def train_rank(packed: str) -> None:
    """Train one rank, in the process that is to be it."""
    from megatron_gptx.training.rank_main import run_rank

    run_rank(packed)


@functools.cache
def _server() -> Any:
    # The server inherits the environment of the moment it starts. One that the tools of data have
    # started in this process knows nothing of ours.
    forkserver._forkserver._stop()
    shorten_socket_names()
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("forkserver")
    # Optimizers import torch._dynamo when the first one is built, which takes seconds too.
    context.set_forkserver_preload(["megatron_gptx.training.pretrain", "torch._dynamo"])
    forkserver.ensure_running()
    return context


def _rank(
    rank: int,
    ranks: int,
    port: int,
    screen: str | Path,
    fault: str,
    device: str,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    # What the server has imported is no garbage. DeepSpeed, asked to report on memory, would look
    # through it many times per step.
    gc.freeze()
    descriptor = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GPTX_FAULT=fault,
        DS_ACCELERATOR=device,
    )
    work(*arguments)
