"""The largest sum of tensors on the CPU during a step of real ranks, as PyTorch's allocator counts.

The allocator reports every allocation, also of kernels in C++, to a profiler of the same thread.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.command_line import decode, encode
from tests.runs import start_ranks

NUM_STEPS = 3


def measure_peaks(config: Config) -> list[int]:
    """Return the peak in bytes of each rank, over one step, since before the model was built."""
    ranks = config.parallel.pipeline_stages * (config.parallel.data_replicas or 1)
    run_dir = Path(config.output.run_dir)
    screen = run_dir.with_name("screen")
    statuses = start_ranks(_rank, ranks, encode(config), screen=screen)
    assert not any(statuses), (statuses, screen.read_text()[-3000:])
    return [json.loads(_result(run_dir, rank).read_text()) for rank in range(ranks)]


def _rank(packed: str) -> None:
    from megatron_gptx.distributed.process import run_worker

    config = decode(packed)
    run_dir = Path(config.output.run_dir)

    def work(process: Any) -> None:
        # Its thread looks into the main one's frames and may be the last to let a tensor go, which
        # a profiler of the main thread does not see.
        process.watch.stop()
        _result(run_dir, process.rank).write_text(json.dumps(_measure(config, process)))

    run_worker(work, run_dir=run_dir, launch=config.launch)


def _result(run_dir: Path, rank: int) -> Path:
    return run_dir / f"peak-{rank}.json"


class _Event(NamedTuple):
    """The total after an allocation or the end of one, and the step in which it was."""

    time: int
    total: int
    step: str


def _measure(config: Config, process: Any) -> int:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from megatron_gptx.data.loader import MicroBatch
    from megatron_gptx.training.build import build_engine

    random = torch.Generator().manual_seed(0)
    shape = config.batch.micro_size, config.model.seq_length
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine = build_engine(config, process, say=lambda line: None)
        for step in range(NUM_STEPS):
            tokens = torch.randint(config.model.vocab_size, shape, generator=random)
            batch = [MicroBatch(tokens, tokens, None)] * config.batch.accumulation_steps
            with record_function(f"step-{step}"):
                engine.train_step(batch, step=step, lr=0.001)
    events: list[_Event] = []
    for root in profiler.profiler.kineto_results.experimental_event_tree():
        _collect(root, "", events)
    return _peak(sorted(events))


def _collect(node: Any, step: str, events: list[_Event]) -> None:
    if node.name.startswith("step-"):
        step = node.name
    if node.name == "[memory]":
        events.append(_Event(node.start_time_ns, node.extra_fields.total_allocated, step))
    for child in node.children:
        _collect(child, step, events)


def _peak(events: list[_Event]) -> int:
    """Return the peak of a step after the first one, which makes the optimizer's state.

    Where a thread of gloo is the last to let a tensor go, the total stays too large. Therefore the
    smallest total before a step counts, and the smallest rise within one.
    """
    before, rises = [], []
    for number in range(1, NUM_STEPS):
        places = [at for at, event in enumerate(events) if event.step == f"step-{number}"]
        before.append(events[places[0] - 1].total)
        rises.append(max(events[at].total for at in places) - before[-1])
    return min(before) + min(rises)
