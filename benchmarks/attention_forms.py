"""The forms of attention that the benchmarks compare, their check against float64, their table."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from x_transformers.attend import Attend

from megatron_gptx.files.write import write_aside
from megatron_gptx.model.attention import alibi_slopes
from megatron_gptx.ops.attention.dispatch import attention

TOP_K = 8
OURS = "ours"
Forms = dict[str, Callable[[], object]]
Clock = Callable[[Callable[[], object]], float]


class Problem:
    """Random inputs of one size, and every form of attention over them."""

    def __init__(
        self,
        b: int,
        h: int,
        s: int,
        d: int,
        dtype: torch.dtype = torch.float32,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (4, b, h, s, d)
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        *qkv, self.grad = numbers.to(device, dtype).unbind()
        self.qkv = [x.requires_grad_() for x in qkv]
        self.slopes = alibi_slopes(h).to(device)
        offset = torch.arange(s, device=device) - torch.arange(s, device=device)[:, None]
        penalty = self.slopes.view(-1, 1, 1) * offset
        # Made once, as a module would keep them.
        self.penalty = penalty.to(dtype)
        self.bias = penalty.masked_fill(offset > 0, -torch.inf).to(dtype)
        self.scale = d**-0.5
        self.x_transformers = Attend(causal=True, sparse_topk=TOP_K, heads=h)

    def ours(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend through the kernels."""
        return attention(q, k, v, slopes=self.slopes, top_k=TOP_K, backend="fused")[0]

    def eager(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as the paper's formulas are usually written, tie for tie at the threshold."""
        return eager_softmax(self.scale * q @ k.transpose(-2, -1), self.bias) @ v

    def theirs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend through x-transformers."""
        return self.x_transformers(q, k, v, attn_bias=self.penalty)[0]

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to all keys, without ALiBi, which PyTorch does best."""
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def dense_alibi(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to all keys with ALiBi."""
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])

    def forward(self, form: Callable[..., Tensor]) -> Callable[[], Tensor]:
        """Return a call of the forward pass alone."""

        def call() -> Tensor:
            with torch.no_grad():
                return form(*self.qkv)

        return call

    def both(self, form: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        """Return a call of the forward and the backward pass."""
        return lambda: torch.autograd.grad(form(*self.qkv), self.qkv, self.grad)


def eager_softmax(scores: Tensor, bias: Tensor) -> Tensor:
    """Return the probabilities of the k largest of scores + bias."""
    z = scores + bias
    threshold = z.topk(TOP_K, dim=-1).values[..., -1:]
    return z.masked_fill(z < threshold, -torch.inf).softmax(dim=-1)


def check(problem: Problem, exact: Problem, forms: dict[str, Callable[..., Tensor]]) -> None:
    """Stop unless every form of top-k attention has gradients as near float64's as eager's are."""
    compare({name: problem.both(form) for name, form in forms.items()}, exact.both(exact.eager)())


def compare(calls: dict[str, Callable[[], tuple[Tensor, ...]]], truth: tuple[Tensor, ...]) -> None:
    """Stop unless every call's tensors are at most twice as far from float64's as eager's are."""
    allowed = 2 * worst(calls["eager"](), truth) + 1e-7
    for name, call in calls.items():
        error = worst(call(), truth)
        print(f"{name:<22} differs from float64 by {error:.1e}")
        if not error <= allowed:
            raise SystemExit(f"{name} is wrong: its error {error:.3g} exceeds {allowed:.3g}")


def worst(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Return the largest difference, relative to the largest element."""
    pairs = zip(found, truth, strict=True)
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def take_turns(forms: Forms, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Return each form's milliseconds per round."""
    for call in forms.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, call in forms.items():
            found[name].append(clock(call))
    return found


def show(
    title: str,
    forms: Forms,
    rounds: int,
    results: dict[str, object],
    clock: Clock,
) -> dict[str, dict[str, float]]:
    """Time the forms in turns; print and keep medians, and ratios to ours, round by round."""
    found = take_turns(forms, rounds, clock)
    print(f"\n{title}")
    rows = {}
    for name, times in found.items():
        ratios = [other / own for other, own in zip(times, found[OURS], strict=True)]
        rows[name] = {"milliseconds": median(times), "ratio": median(ratios)}
        spread = "" if name == OURS else f"{min(ratios):7.2f} to {max(ratios):.2f}"
        print(f"  {name:<22}{median(times):>10.2f} ms{median(ratios):>9.2f}x {spread}")
    results[title] = rows
    return rows


def write_results(path: Path | None, results: dict[str, object]) -> None:
    """Write a JSON file, where one is asked for."""
    if path:
        write_aside(path, json.dumps(results, indent=2) + "\n")
