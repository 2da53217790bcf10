"""Measure what checkpoints cost on this CPU: time of a save, and of the steps beside one.

Ranks of the configuration, as many as it says, train the model on random tokens and save it, each
rank as in a run. A synchronous save takes turns with `torch.save` and fsync of the same tensors by
the same ranks, into one file each, and of as many bytes by one rank. For asynchronous saving, steps
beside which a checkpoint is written take turns with steps beside which nothing is. The copy into
host memory, during which training stands still, is reported by itself, and so is `poll` after each
step. What counts is the median over turns.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.data.loader import MicroBatch
from megatron_gptx.distributed.process import Process, run_worker
from megatron_gptx.files.write import write_aside
from megatron_gptx.launcher.command_line import free_port

WARMUP_STEPS = 5


class Ranks:
    """One rank's part of the measurements."""

    def __init__(self, config: Config, process: Process) -> None:
        # DeepSpeed prints while it is imported: not before the output goes to a file.
        from megatron_gptx.checkpoint.save import Saver
        from megatron_gptx.training.build import build_engine

        self.config, self.process = config, process
        self.engine = build_engine(config, process, say=print)
        self.saver = Saver(
            self.engine.deepspeed, config, replica=self.engine.replica, say=lambda text: None
        )
        self.folder = Path(config.output.run_dir)
        self.step = 0
        mine = torch.tensor(sum(part.num_bytes for part in self.saver._parts()))
        everyone = mine.clone()
        dist.all_reduce(everyone)
        self.num_bytes = int(everyone.item())
        self.of_others = torch.rand(int(everyone - mine) // 4)
        for _ in range(WARMUP_STEPS):
            self.train()

    def train(self) -> None:
        """Update the weights once."""
        batch, model = self.config.batch, self.config.model
        generator = torch.Generator().manual_seed(self.step)
        shape = (batch.accumulation_steps, batch.micro_size, model.seq_length + 1)
        tokens = torch.randint(model.vocab_size, shape, generator=generator)
        step = [MicroBatch(m[:, :-1].contiguous(), m[:, 1:].contiguous()) for m in tokens]
        self.engine.train_step(step, step=self.step, lr=self.config.optimizer.lr)
        self.step += 1

    def save(self, *, asynchronous: bool) -> None:
        """Save, as the configuration of a run would."""
        self.step += 1  # never over an existing one
        options = self.config.checkpoint.model_copy(update={"asynchronous": asynchronous})
        self.saver.config = self.config.model_copy(update={"checkpoint": options})
        self.saver.save({"step": self.step, "samples": 0, "tokens": 0}, last=False)

    def save_raw(self) -> None:
        """Write the same tensors as PyTorch does it."""
        self._save_raw({part.name: part.tensors for part in self.saver._parts()})

    def save_alone(self) -> None:
        """Write what all ranks have, or as many bytes, by one of them."""
        if self.process.rank == 0:
            tensors: dict[str, Any] = {part.name: part.tensors for part in self.saver._parts()}
            self._save_raw({**tensors, "of other ranks": self.of_others})

    def _save_raw(self, content: dict[str, Any]) -> None:
        with (self.folder / f"raw-{self.process.rank}").open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

    def remove_raw(self) -> None:
        """Make room for the next one."""
        (self.folder / f"raw-{self.process.rank}").unlink(missing_ok=True)

    def slowest(self, work: Callable[[], None]) -> float:
        """Return the milliseconds that a piece of work takes on the slowest rank."""
        dist.barrier()
        started_at = time.perf_counter()
        work()
        taken = torch.tensor(time.perf_counter() - started_at)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        return taken.item() * 1e3


def compare_saves(ranks: Ranks, pairs: int) -> dict[str, list[float]]:
    """Return milliseconds of our saves and of raw ones."""
    ways = {
        "ours": partial(ranks.save, asynchronous=False),
        "raw": ranks.save_raw,
        "raw, by one": ranks.save_alone,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(pairs + 1):
        for name, way in ways.items():
            taken = ranks.slowest(way)
            ranks.remove_raw()
            ranks.saver.finish()  # which waits until old ones are deleted
            if turn:  # the first one meets empty caches
                times[name].append(taken)
    return times


def compare_steps(ranks: Ranks, pairs: int) -> dict[str, list[float]]:
    """Return milliseconds of steps alone and of steps beside a save, and of the copy before."""
    names = ("alone", "beside a save", "copy", "poll", "steps")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(pairs):
        beside: list[float] = []
        times["copy"].append(ranks.slowest(partial(ranks.save, asynchronous=True)))
        while ranks.saver.pending is not None:
            beside.append(ranks.slowest(ranks.train))
            times["poll"].append(ranks.slowest(ranks.saver.poll))
        ranks.saver.finish()  # which waits until old ones are deleted
        alone = [ranks.slowest(ranks.train) for _ in beside]
        times["steps"].append(len(beside))
        times["beside a save"].append(sum(beside) / len(beside))
        times["alone"].append(sum(alone) / len(alone))
    return times


def measure(config: Config, options: argparse.Namespace, process: Process) -> None:
    """Take all measurements; rank 0 shows and writes the result."""
    torch.set_num_threads(options.threads)
    ranks = Ranks(config, process)
    saves = compare_saves(ranks, options.pairs)
    steps = compare_steps(ranks, options.pairs)
    if process.rank == 0:
        result = {"bytes": ranks.num_bytes, "save_ms": saves, "step_ms": steps}
        report(result, partial(print, file=process.console))
        if options.output:
            write_aside(options.output, json.dumps(result, indent=2) + "\n")
    dist.barrier()


def report(result: dict[str, Any], show: Callable[[str], None]) -> None:
    """Show medians and ratios."""
    show(f"a checkpoint of {result['bytes'] / 1e6:.1f} MB")
    for title, ours in (("save_ms", "ours"), ("step_ms", "beside a save")):
        times = result[title]
        for name, values in times.items():
            more = ""
            if name in ("raw", "raw, by one", "alone"):
                ratio = median(a / b for a, b in zip(times[ours], values, strict=True))
                more = f"{ours} {ratio - 1:+.1%}"
            spread = f"({min(values):.1f} to {max(values):.1f} over {len(values)})"
            unit = "  " if name == "steps" else "ms"
            show(f"{name:<14}{median(values):>8.1f} {unit} {spread:<30}{more}")


def as_rank(rank: int, ranks: int, port: int, config: Config, options: argparse.Namespace) -> None:
    """Be one of the ranks."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    run_worker(
        partial(measure, config, options),
        run_dir=Path(config.output.run_dir),
        launch=LaunchConfig(timeout_seconds=600),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/quickstart.yml"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=30, help="turns of each side; default: 30")
    parser.add_argument("--threads", type=int, default=1, help="of each rank; default: 1")
    parser.add_argument("--folder", type=Path, help="where to save; default: temporary files")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    run_dir = Path(tempfile.mkdtemp(prefix="checkpoint_cpu-", dir=options.folder))
    try:
        config = load([options.config], [*options.set, f"output.run_dir={run_dir}"])
    except UserError as error:
        parser.exit(2, f"{error}\n")
    port = free_port()
    ranks = config.parallel.pipeline_stages * (config.parallel.data_replicas or 1)
    # Before a rank imports anything: its threads are counted when PyTorch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    context = get_context("spawn")
    processes = [
        context.Process(target=as_rank, args=(rank, ranks, port, config, options))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        return 1  # the message names the log in the run folder
    shutil.rmtree(run_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
