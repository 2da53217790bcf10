"""Measure top-k attention on this GPU against what else there is, all in one run.

The rivals are the same formulas in eager PyTorch, the same through torch.compile, x-transformers'
attention, and PyTorch's dense attention with ALiBi, which computes something else. Times are those
of device events; forms take turns, each over several input sets, so that none finds its inputs in a
cache. Before anything is timed, attention in every form that is not compiled and our softmax are
compared with float64. Beside the kernels' times stands the share of the bandwidth that a copy
reaches in the same run.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from attention_forms import (
    OURS,
    TOP_K,
    Clock,
    Problem,
    check,
    eager_softmax,
    show,
    take_turns,
    write_results,
)
from torch import Tensor

from megatron_gptx.ops.attention.topk_softmax import (
    topk_softmax,
    topk_softmax_reference,
    unsupported,
)
from megatron_gptx.ops.kernels import library

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Elements per s * s that a pass over full rows has to touch: half of the scores and all of the
# probabilities; half of the probabilities and of their gradients, and all of the scores' gradients.
# Our backward pass reads k of each row instead, and so can exceed the copy.
TOUCHED = {"forward": 1.5, "backward": 2.0}


def device_milliseconds(call: Callable[[], object]) -> float:
    """Return how long the device works on a call."""
    started_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started_at.record()
    call()
    ended_at.record()
    ended_at.synchronize()
    return started_at.elapsed_time(ended_at)


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a call of the next of some calls, again and again."""
    following = cycle(calls)
    return lambda: next(following)()


class Softmax:
    """Scores of one size with their gradient, and every form of top-k softmax over them."""

    def __init__(self, problem: Problem, *, seed: int) -> None:
        b, h, s, _ = problem.grad.shape
        device, dtype = problem.grad.device, problem.grad.dtype
        generator = torch.Generator(device).manual_seed(seed)
        shape = (2, b, h, s, s)
        self.scores, self.grad = torch.randn(
            shape, generator=generator, device=device, dtype=dtype
        ).unbind()
        self.slopes = problem.slopes
        _, self.kept, self.weights = self.kernel()
        self.scores.requires_grad_()

    def kernel(self) -> tuple[Tensor, ...]:
        """Run the forward kernel alone."""
        return torch.ops.gptx.topk_softmax(self.scores.detach(), self.slopes, TOP_K, None, 0.0, 0)

    def backward_kernel(self) -> Tensor:
        """Run the backward kernel alone."""
        return torch.ops.gptx.topk_softmax_backward(self.grad, self.kept, self.weights, 0.0, 0)

    def forward(self, form: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """Return a call of a form's forward pass."""
        return lambda: form(self.scores.detach())

    def both(self, form: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        """Return a call of a form's forward and backward pass."""
        return lambda: torch.autograd.grad(form(self.scores), self.scores, self.grad)


def check_softmax(options: argparse.Namespace, device: str) -> None:
    """Stop unless the kernel keeps the keys that float64 keeps, with its weights."""
    problem = Problem(1, 2, *options.shape[2:], DTYPES[options.dtype], device=device)
    softmax = Softmax(problem, seed=0)
    probs, kept, weights = softmax.kernel()
    exact = topk_softmax_reference(softmax.scores.detach().double(), TOP_K, slopes=softmax.slopes)
    found = torch.zeros_like(exact).scatter_add_(-1, kept.clamp(min=0).long(), weights.double())
    error = (found - exact).abs().max().item()
    rounded = (probs.double() - exact).abs().max().item()
    print(f"softmax of given scores differs from float64 by {error:.1e}, rounded by {rounded:.1e}")
    if not (error < 1e-5 and rounded <= torch.finfo(probs.dtype).eps):
        raise SystemExit("the kernel of top-k softmax is wrong")


def copy_bandwidth(options: argparse.Namespace, device: str, clock: Clock) -> float:
    """Return the bytes per second, read and written, of copies as large as the scores."""
    b, h, s, _ = options.shape
    shape, dtype = (b, h, s, s), DTYPES[options.dtype]
    pairs = [[torch.randn(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(2)]
    copies = in_turn([partial(to.copy_, source) for to, source in pairs])
    times = take_turns({"copy": copies}, 4 * options.rounds, clock)["copy"]
    moved = 2 * pairs[0][0].numel() * pairs[0][0].element_size()
    return moved / (median(times) / 1000)


def measure_softmax(
    options: argparse.Namespace, device: str, clock: Clock, results: dict[str, object]
) -> None:
    """Show op A: its kernels alone against a copy, and its passes against their rivals."""
    b, h, s, d = options.shape
    dtype = DTYPES[options.dtype]
    problem = Problem(b, h, s, d, dtype, device=device)
    sets = [Softmax(problem, seed=seed) for seed in range(options.sets)]
    size = f"b={b} h={h} s={s} k={TOP_K} {options.dtype}"

    bandwidth = copy_bandwidth(options, device, clock)
    print(f"\na copy moves {bandwidth / 1e9:.0f} GB/s")
    kernels = {"forward": [x.kernel for x in sets], "backward": [x.backward_kernel for x in sets]}
    times = take_turns({n: in_turn(c) for n, c in kernels.items()}, options.rounds, clock)
    shares = {}
    for name, found in times.items():
        touched = TOUCHED[name] * b * h * s * s * torch.finfo(dtype).bits / 8
        share = touched / (median(found) / 1000) / bandwidth
        shares[name] = {"milliseconds": median(found), "share_of_copy": share}
        print(f"  {name:<22}{median(found):>10.3f} ms, {share:.0%} of the copy's bandwidth")
    results[f"kernels alone, {size}"] = {"copy_bytes_per_second": bandwidth, **shares}

    forms: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: partial(topk_softmax, top_k=TOP_K, slopes=problem.slopes, backend="fused"),
        "eager": partial(eager_softmax, bias=problem.bias),
    }
    if not options.no_compile:
        forms["eager, torch.compile"] = torch.compile(forms["eager"])
    for title, passes in {"forward": Softmax.forward, "forward and backward": Softmax.both}.items():
        calls = {name: in_turn([passes(x, form) for x in sets]) for name, form in forms.items()}
        title = f"softmax of given scores, {title}, {size}"
        show(title, calls, options.rounds, results, clock)


def measure_attention(
    options: argparse.Namespace, device: str, clock: Clock, results: dict[str, object]
) -> None:
    """Show attention: two products around op A, against its rivals."""
    b, h, s, d = options.shape
    names = {OURS: "ours", "eager": "eager", "x-transformers": "theirs"}
    # In float32, since rounded scores choose other keys; a few heads, since float64 is large.
    few, exact = (
        Problem(1, 2, s, d, dtype, device=device) for dtype in (torch.float32, torch.float64)
    )
    check(few, exact, {name: getattr(few, form) for name, form in names.items()})
    del few, exact

    dtype = DTYPES[options.dtype]
    sets = [Problem(b, h, s, d, dtype, device=device, seed=n) for n in range(options.sets)]
    forms = {name: [getattr(x, form) for x in sets] for name, form in names.items()}
    if not options.no_compile:
        forms["eager, torch.compile"] = [torch.compile(x.eager) for x in sets]
    forms["dense, ALiBi"] = [x.dense_alibi for x in sets]
    size = f"b={b} h={h} s={s} d={d} k={TOP_K} {options.dtype}"
    for title, passes in {"forward": Problem.forward, "forward and backward": Problem.both}.items():
        calls = {
            name: in_turn([passes(x, form) for x, form in zip(sets, by_set, strict=True)])
            for name, by_set in forms.items()
        }
        show(f"attention, {title}, {size}", calls, options.rounds, results, clock)


def measure(
    options: argparse.Namespace, device: str, clock: Clock, results: dict[str, object]
) -> None:
    """Check and show everything."""
    check_softmax(options, device)
    measure_softmax(options, device, clock, results)
    measure_attention(options, device, clock, results)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options; stop at wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", type=int, nargs=4, default=[8, 16, 2048, 128], metavar=("B", "H", "S", "D")
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each form; default: 21")
    parser.add_argument("--sets", type=int, default=3, help="input sets; default: 3")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    if min(*options.shape, options.rounds, options.sets) < 1:
        parser.error("sizes, rounds and sets must be at least 1")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(argv)
    if not torch.cuda.is_available():
        sys.stderr.write("needs a GPU: none is visible\n")
        return 2
    reason = library.load(lambda line: print(line, file=sys.stderr))
    reason = reason or unsupported(torch.empty(1, 1, 1, options.shape[2], device="cuda"))
    if reason:
        sys.stderr.write(f"the kernels cannot run here: {reason}\n")
        return 2
    # PyTorch's own products in float32 shall be that.
    torch.set_float32_matmul_precision("highest")
    results: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "architectures": torch.ops.gptx.cuda_architectures(),
    }
    print(f"{results['device']}, {options.dtype}, PyTorch {torch.__version__}")
    measure(options, "cuda", device_milliseconds, results)
    write_results(options.output, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
