"""Measure top-k attention on this CPU against what else there is, all in one run.

The rivals are the same formulas in eager PyTorch, the same through torch.compile, x-transformers'
attention, and PyTorch's dense attention with and without ALiBi, which computes something else. All
take turns, so that whatever else the machine does slows all: the ratios mean more than the times.
Before anything is timed, every form of top-k attention is compared with float64, and so are the
layers that hand on their scores. --isa avx2 shows what a CPU without AVX-512 does.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from attention_forms import (
    OURS,
    TOP_K,
    Clock,
    Forms,
    Problem,
    check,
    compare,
    eager_softmax,
    show,
    write_results,
)
from machine import CLOCKS, add_options, restart_with
from torch import Tensor

from megatron_gptx.ops.attention.dispatch import attention
from megatron_gptx.ops.attention.topk_softmax import topk_softmax
from megatron_gptx.ops.kernels import library


def clock_of(options: argparse.Namespace) -> Clock:
    """Return what tells how many milliseconds a call takes."""
    read = CLOCKS[options.clock]

    def milliseconds(call: Callable[[], object]) -> float:
        started_at = read()
        call()
        return 1000 * (read() - started_at)

    return milliseconds


def measure_attention(options: argparse.Namespace, results: dict[str, object]) -> None:
    """Show ops A and B at the size of the arguments."""
    b, h, s, d = options.shape
    problem, exact = Problem(b, h, s, d), Problem(b, h, s, d, torch.float64)
    forms = {OURS: problem.ours, "eager": problem.eager, "x-transformers": problem.theirs}
    if not options.no_compile:
        forms["eager, torch.compile"] = torch.compile(problem.eager)
    check(problem, exact, forms)
    del exact
    forms |= {"dense": problem.dense, "dense, ALiBi": problem.dense_alibi}
    size = f"b={b} h={h} s={s} d={d} k={TOP_K}"
    passes = {"forward": problem.forward, "forward and backward": problem.both}
    for name, one_pass in passes.items():
        calls = {form: one_pass(call) for form, call in forms.items()}
        show(f"attention, {name}, {size}", calls, options.rounds, results, clock_of(options))

    scores = torch.randn(b, h, s, s).requires_grad_()
    grad = torch.randn(b, h, s, s)
    softmax: dict[str, Callable[..., Tensor]] = {
        OURS: partial(topk_softmax, top_k=TOP_K, slopes=problem.slopes, backend="fused"),
        "eager": partial(eager_softmax, bias=problem.bias),
    }
    if not options.no_compile:
        softmax["eager, torch.compile"] = torch.compile(softmax["eager"])

    def both(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(scores), scores, grad)

    both_passes = {name: partial(both, form) for name, form in softmax.items()}
    wide = scores.detach().double().requires_grad_()
    probs = eager_softmax(wide, problem.bias.double())
    compare(both_passes, torch.autograd.grad(probs, wide, grad.double()))
    del wide, probs
    calls = {name: partial(form, scores.detach()) for name, form in softmax.items()}
    show(
        f"softmax of given scores, forward, {size}",
        calls,
        options.rounds,
        results,
        clock_of(options),
    )
    show(
        f"softmax of given scores, forward and backward, {size}",
        both_passes,
        options.rounds,
        results,
        clock_of(options),
    )


def measure_skipping(options: argparse.Namespace, results: dict[str, object]) -> None:
    """Show what passing over panels is worth, and that it changes nothing."""
    b, h, _, d = options.shape
    for s in options.skip_lengths:
        problem = Problem(b, h, s, d)
        q, k, v = (x.detach() for x in problem.qkv)

        def call(skip: bool, q=q, k=k, v=v, slopes=problem.slopes) -> tuple[Tensor, ...]:
            return torch.ops.gptx.topk_attention(
                *(q, k, v, None, slopes, TOP_K, None, 0.0, 0, False, "best", skip)
            )

        same = all(torch.equal(x, y) for x, y in zip(call(True), call(False), strict=True))
        if not same:
            raise SystemExit(f"skipping changes the result at s={s}")
        calls = {OURS: partial(call, True), "no panel skipped": partial(call, False)}
        show(f"forward, s={s}, equal bit by bit", calls, options.rounds, results, clock_of(options))


def layers_of(problem: Problem, layers: int, *, ours: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Return forward and backward of layers that add their scores to one another's."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, prev_scores: Tensor | None, last: bool):
        return attention(
            q,
            k,
            v,
            slopes=problem.slopes,
            top_k=TOP_K,
            prev_scores=prev_scores,
            return_scores=not last,
            reuse_scores=True,
            backend="fused",
        )

    def eager(q: Tensor, k: Tensor, v: Tensor, prev_scores: Tensor | None, last: bool):
        scores = problem.scale * q @ k.transpose(-2, -1)
        scores = scores if prev_scores is None else scores + prev_scores
        return eager_softmax(scores, problem.bias) @ v, scores

    def call() -> tuple[Tensor, ...]:
        q, k, v = problem.qkv
        out, scores = torch.zeros(()), None
        for layer in range(layers):
            mixed, scores = (kernel if ours else eager)(q, k, v, scores, layer == layers - 1)
            out = out + mixed
        return torch.autograd.grad(out, problem.qkv, problem.grad)

    return call


def measure_layers(options: argparse.Namespace, results: dict[str, object]) -> None:
    """Show RealFormer's layers, each of which adds to the scores of the one before."""
    problem = Problem(*options.shape)
    layers = options.layers
    # Of two layers only: over many a near tie falls either way, as it may in float32.
    exact = Problem(*options.shape, torch.float64)
    sides = {OURS: True, "eager": False}
    two = {name: layers_of(problem, 2, ours=ours) for name, ours in sides.items()}
    compare(two, layers_of(exact, 2, ours=False)())
    calls: Forms = {name: layers_of(problem, layers, ours=ours) for name, ours in sides.items()}
    title = f"{layers} layers with carried scores, forward and backward"
    show(title, calls, max(3, options.rounds // 3), results, clock_of(options))


def peak_bytes(case: str) -> int:
    """Return how much one case adds to the memory of this process, which nothing else uses."""
    name, length, layers = case.split(",")
    small, problem = Problem(1, 1, 64, 64), Problem(1, 1 if layers == "0" else 4, int(length), 64)
    ours = name == OURS

    def prepare(problem: Problem) -> Callable[[], object]:
        if layers == "0":
            return problem.both(problem.ours if ours else problem.eager)
        return layers_of(problem, int(layers), ours=ours)

    prepare(small)()  # what a first call allocates for good
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the future from here on
    before = status_bytes("VmRSS")
    prepare(problem)()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """Return a size that the system reports of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(kilobytes)


def measure_memory(options: argparse.Namespace, results: dict[str, object]) -> None:
    """Show the peak memory of forward and backward, each in a process of its own."""
    s, c = options.memory_length, options.shape[2]
    cases = [(f"one head, s={s}", s, 0)]
    cases += [(f"{n} layers with carried scores, s={c}", c, n) for n in (2, options.layers)]
    print("\nmemory that forward and backward add to the process")
    for title, length, layers in cases:
        found = {}
        for name in (OURS, "eager"):
            command = [sys.executable, __file__, "--peak-of", f"{name},{length},{layers}"]
            # Freed memory goes back to the system at once, and is not counted twice.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            found[name] = int(done.stdout.splitlines()[-1])
        ratio = found["eager"] / max(found[OURS], 1)
        sizes = f"{found[OURS] / 2**20:>8.0f} MiB, eager {found['eager'] / 2**20:>8.0f} MiB"
        print(f"  {title:<42}{sizes}, {ratio:.1f}x")
        results[f"memory, {title}"] = {**found, "ratio": ratio}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", type=int, nargs=4, default=[1, 4, 1024, 128], metavar=("B", "H", "S", "D")
    )
    parser.add_argument("--rounds", type=int, default=11, help="turns of each form; default: 11")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-lengths", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--layers", type=int, default=12, help="of the carried scores; default: 12")
    parser.add_argument("--memory-length", type=int, default=8192)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args(argv)
    restart_with(options.isa)
    torch.set_num_threads(options.threads)
    if reason := library.load(lambda line: print(line, file=sys.stderr)):
        parser.exit(2, f"the kernels cannot run here: {reason}\n")
    if options.peak_of:
        print(peak_bytes(options.peak_of))
        return 0
    results: dict[str, object] = {"threads": options.threads, "torch": torch.__version__}
    variant = library.cpu_capability()
    results |= {"isa": variant, "clock": options.clock}
    print(f"{options.threads} thread(s), float32, {variant}, PyTorch {torch.__version__}")
    measure_attention(options, results)
    measure_skipping(options, results)
    measure_layers(options, results)
    measure_memory(options, results)
    write_results(options.output, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
