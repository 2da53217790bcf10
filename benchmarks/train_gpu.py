"""Measure training on this GPU: tokens per second, memory beside the plan's, FLOPs utilisation.

One engine after the other, as `train.py` builds it, trains a configuration in one process, in each
precision with and without our kernels; plain PyTorch, which is slower, takes fewer steps. The
utilisation is that of the model FLOPs, relative to what a product of large matrices reaches in the
same run and precision: not to the number in a data sheet.

With --stages every pipeline stage of a configuration trains alone instead, on this GPU, and PyTorch
gets no more of its memory than a V100 has in all: what the stage would compute and keep between its
neighbours, without them, with the configuration's precision and backend.
"""

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from training_runs import (
    ONE_RANK,
    WARMUP_STEPS,
    Step,
    as_only_rank,
    loss_fall,
    random_steps,
)

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.ops import OpsConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.plan import NOTES, StagePlan, make_plan
from megatron_gptx.distributed.process import Process
from megatron_gptx.files.write import write_aside
from megatron_gptx.model.backend import DTYPES

GIB = 2**30
STAGE_GIB = 16
REFERENCE_STEPS = 15
# Sides of square matrices, and how many products of them follow one another.
MATRIX_SIZE, PRODUCTS = 8192, 20

Show = Callable[[str], None]
Result = dict[str, Any]


class Measured(NamedTuple):
    """What some steps took."""

    losses: list[float]
    step_seconds: float
    """Median after the first ones."""
    applied: int
    peak_bytes: int
    """Allocated at once, from the building of the engine to the last step."""
    reserved_bytes: int
    """What the allocator held for that."""


def measure(
    build: Callable[[], Any], steps: Sequence[Step], process: Process, *, lr: float
) -> Measured:
    """Build an engine, time its steps, and free it."""
    process.watch.begin("build", 0)
    occupied, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    engine = build()
    results, seconds = [], []
    for number, step in enumerate(steps):
        process.watch.begin("step", number)
        torch.cuda.synchronize()
        started_at = time.perf_counter()
        results.append(engine.train_step(step, step=number, lr=lr))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started_at)
    engine.deepspeed.destroy()
    # Hooks of the tensors that it holds still hold it, where no collector can see the circle.
    vars(engine.deepspeed).clear()
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return Measured(
        [result.loss for result in results],
        median(seconds[WARMUP_STEPS:]),
        sum(result.applied for result in results),
        torch.cuda.max_memory_allocated() - occupied,
        torch.cuda.max_memory_reserved() - reserved,
    )


def product_flops_per_second(dtype: torch.dtype) -> float:
    """Return the rate of products of large random matrices."""
    shape = (MATRIX_SIZE, MATRIX_SIZE)
    a, b = (torch.randn(shape, dtype=dtype, device="cuda") for _ in range(2))
    started_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(WARMUP_STEPS):
        a @ b
    started_at.record()
    for _ in range(PRODUCTS):
        a @ b
    ended_at.record()
    ended_at.synchronize()
    return 2 * MATRIX_SIZE**3 * PRODUCTS / (started_at.elapsed_time(ended_at) / 1000)


def build_run(config: Config, process: Process) -> Any:
    """Return the engine of a run."""
    # DeepSpeed prints while it is imported: not before the output goes to a file.
    from megatron_gptx.training.build import build_engine

    return build_engine(config, process, say=print)


def build_stage(config: Config, plan: StagePlan, process: Process) -> Any:
    """Return the engine of one stage."""
    from stage_alone import StageAlone

    return StageAlone(config, plan, process)


def compare_runs(
    config: Config, options: argparse.Namespace, process: Process, show: Show
) -> Iterator[Result]:
    """Measure every precision and backend; show and yield what was found."""
    # One by one: the weights that they are drawn by are as large as the vocabulary.
    steps = [random_steps(config, 1)[0] for _ in range(options.steps)]
    flops_per_token = make_plan(config).training_flops_per_token
    tokens = config.batch.global_size * config.model.seq_length
    show(f"{tokens:,} tokens per step, {flops_per_token:,} FLOPs per token")
    for precision in options.precisions:
        attainable = product_flops_per_second(DTYPES[precision])
        torch.cuda.empty_cache()
        size = f"{MATRIX_SIZE} x {MATRIX_SIZE}"
        show(f"{precision}: a product of {size} matrices reaches {attainable / 1e12:.0f} TFLOPS")
        for backend in options.backends:
            changes = {"precision": precision, "ops": OpsConfig(backend=backend)}
            own = config.model_copy(update=changes)
            number = min(options.steps, REFERENCE_STEPS) if backend == "reference" else None
            build = partial(build_run, own, process)
            found = measure(build, steps[:number], process, lr=config.optimizer.lr)
            name, speed = f"{precision}, {backend}", tokens / found.step_seconds
            utilisation = speed * flops_per_token / attainable
            planned = make_plan(own).stages[0].peak_bytes
            skipped = len(found.losses) - found.applied
            show(f"{name}: {loss_fall(name, found.losses)}, {skipped} of them skipped")
            show(f"  {speed:,.0f} tokens/s, {utilisation:.1%} of the product's FLOPs per second")
            show(f"  {memory(found, planned)}")
            yield {
                "precision": precision,
                "backend": backend,
                "tokens_per_second": speed,
                "product_flops_per_second": attainable,
                "utilisation": utilisation,
                "planned_peak_bytes": planned,
                **found._asdict(),
            }


def measure_stages(
    config: Config, options: argparse.Namespace, process: Process, show: Show
) -> Iterator[Result]:
    """Measure every stage in a V100's memory; show and yield what was found."""
    total = torch.cuda.get_device_properties(process.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, STAGE_GIB * GIB / total))
    show(f"at most {STAGE_GIB} GiB, {config.precision}, ops.backend {config.ops.backend}")
    steps = [random_steps(config, 1)[0] for _ in range(options.steps)]
    for plan in make_plan(config).stages:
        name = f"stage {plan.stage}, layers {plan.first_layer} to {plan.stop_layer - 1}"
        build = partial(build_stage, config, plan, process)
        try:
            found = measure(build, steps, process, lr=config.optimizer.lr)
        except torch.cuda.OutOfMemoryError as error:
            raise RuntimeError(f"{name} does not fit in {STAGE_GIB} GiB: {error}") from error
        if not (found.applied and all(map(math.isfinite, found.losses))):
            raise RuntimeError(f"{name} does not train: losses {found.losses}")
        milliseconds = 1000 * found.step_seconds / config.batch.accumulation_steps
        skipped = len(found.losses) - found.applied
        show(f"{name}, {plan.parameters:,} parameters: {skipped} of {len(steps)} steps skipped")
        show(f"  {milliseconds:.1f} ms per micro-batch, the optimizer's share included")
        show(f"  {memory(found, plan.peak_bytes)}")
        yield {
            "stage": plan.stage,
            "parameters": plan.parameters,
            "milliseconds_per_micro_batch": milliseconds,
            "planned_peak_bytes": plan.peak_bytes,
            **found._asdict(),
        }


def memory(found: Measured, planned: int) -> str:
    """Return the peak beside the plan's."""
    peak, reserved = found.peak_bytes / GIB, found.reserved_bytes / GIB
    ratio = found.peak_bytes / planned
    return (
        f"peak {peak:.2f} GiB, {ratio:.2f} of the {planned / GIB:.2f} GiB planned; the allocator "
        f"held {reserved:.2f} GiB"
    )


def work(config: Config, options: argparse.Namespace, process: Process) -> None:
    """Measure what is asked for; show and write it."""
    show = partial(print, file=process.console)
    torch.manual_seed(config.training.seed)
    show(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {options.config}")
    found: Result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "config": str(options.config),
        "set": options.set,
        "results": [],
    }
    measurements = measure_stages if options.stages else compare_runs
    for result in measurements(config, options, process, show):
        found["results"].append(result)
        if options.output:  # after each one, for the next may not fit
            write_aside(options.output, json.dumps(found, indent=2) + "\n")
    show("\n".join(NOTES))


def parse(argv: list[str] | None) -> tuple[Config, argparse.Namespace]:
    """Return the configuration and the options; stop at wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="default: 125M, with --stages 1B")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--stages", action="store_true", help="each pipeline stage alone")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, help="default: bf16 fp16")
    parser.add_argument(
        "--backends", nargs="+", choices=["fused", "reference"], help="default: fused reference"
    )
    parser.add_argument("--steps", type=int, default=50, help="default: 50")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    if options.steps <= WARMUP_STEPS:
        parser.error(f"--steps must be above {WARMUP_STEPS}, which are not timed")
    if options.stages and (options.precisions or options.backends):
        parser.error("--stages takes precision and ops.backend from the configuration: use --set")
    options.precisions = options.precisions or ["bf16", "fp16"]
    options.backends = options.backends or ["fused", "reference"]
    options.config = options.config or Path(
        "configs/1B-v100x2.yml" if options.stages else "configs/125M.yml"
    )
    settings = ["parallel.data_replicas=1"] if options.stages else ONE_RANK.split()
    try:
        config = load([options.config], [*options.set, *settings])
    except UserError as error:
        parser.exit(2, f"{error}\n")
    if options.stages and config.parallel.pipeline_stages == 1:
        parser.error("--stages needs a configuration of several: set parallel.pipeline_stages")
    return config, options


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    config, options = parse(argv)
    if not torch.cuda.is_available():
        sys.stderr.write("needs a GPU: none is visible\n")
        return 2
    as_only_rank(partial(work, config, options), accelerator="cuda")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
