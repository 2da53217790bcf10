"""The loss kernels compute what PyTorch does, a block of logits at a time."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops import linear_cross_entropy as module
from megatron_gptx.ops.linear_cross_entropy import (
    fused_linear_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from tests.numerics import assert_all_as_accurate
from tests.ops.conftest import VARIANTS
from tests.pairs import pairwise

IGNORED = -100
M = 7
# Rows shorter than any vector, with and without a rest, and several blocks.
SHAPES = [(5, 1), (64, 3), (33, 32), (40, 61), (300, 4096), (40, 22003)]
INF, NAN = float("inf"), float("nan")


class Shapes(TorchDispatchMode):
    """Keeps the shapes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(leaf.shape) for leaf in tree_leaves(found) if torch.is_tensor(leaf)}
        return found


def random_batch(n: int, v: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * v)
    x = torch.randn(n, M, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(v, M, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(v, (n,), generator=generator)
    labels[::4] = IGNORED
    return x, weight, labels


def results(form, x: Tensor, weight: Tensor, labels: Tensor, **options) -> tuple[Tensor, ...]:
    """Return the loss, and the gradients of a multiple of it."""
    loss = form(x, weight, labels, ignored=IGNORED, **options)
    return loss, *torch.autograd.grad(0.3 * loss, (x, weight))


def on_logits(logits: Tensor, labels: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Return the loss of given logits, and its gradient with respect to them."""
    grad = logits.clone()
    return torch.ops.gptx.cross_entropy_(grad, labels, IGNORED, variant), grad


@pytest.mark.parametrize(
    ("variant", "shape", "dtype"),
    pairwise(product(VARIANTS, SHAPES, [torch.float32, torch.bfloat16, torch.float16])),
    indirect=["variant"],
)
def test_the_kernels_are_as_accurate_as_the_reference(shape, dtype, variant):
    x, weight, labels = random_batch(*shape, dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    actual = results(fused_linear_cross_entropy, x, weight, labels, variant=variant)
    expected = results(linear_cross_entropy_reference, x, weight, labels)
    exact = results(linear_cross_entropy_reference, *wide, labels)
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in expected]
    assert_all_as_accurate(actual, expected, exact)


@pytest.mark.usefixtures("kernels")
def test_no_tensor_holds_the_logits_of_all_rows(monkeypatch):
    x, weight, labels = random_batch(300, 61)
    monkeypatch.setattr(module, "BLOCK", 61 * 100)
    with Shapes() as seen:
        linear_cross_entropy(x, weight, labels, ignored=IGNORED, backend="fused").backward()
    assert (100, 61) in seen.shapes
    assert not any(math.prod(shape) > 61 * 100 for shape in seen.shapes)


@pytest.mark.usefixtures("kernels")
def test_nothing_is_differentiated_that_nobody_needs():
    x, weight, labels = random_batch(40, 61)
    with torch.no_grad():
        quiet = linear_cross_entropy(x, weight, labels, ignored=IGNORED, backend="fused")
    assert not quiet.requires_grad
    options = {"ignored": IGNORED, "backend": "fused"}
    only_x = linear_cross_entropy(x, weight.detach(), labels, **options)
    only_x.backward()
    assert weight.grad is None
    assert torch.equal(only_x, quiet)
    expected = results(linear_cross_entropy, x, weight, labels, backend="fused")
    assert torch.allclose(0.3 * x.grad, expected[1])


def test_probabilities_far_below_the_largest_become_zero(variant):
    logits = torch.tensor([[0.0, -50.0, -87.0, -1e4, -INF]])
    loss, grad = on_logits(logits, torch.tensor([0]), variant)
    assert loss == 0
    assert torch.allclose(grad[0, 1:3], logits[0, 1:3].exp(), rtol=1e-6, atol=0)
    assert torch.equal(grad[0, [0, 3, 4]], torch.zeros(3))


@pytest.mark.parametrize("row", [[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])
def test_what_has_no_softmax_gives_no_number(row, variant):
    logits = torch.tensor([row, [0.0, 1.0, 2.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    for loss, grad in (
        on_logits(logits.detach(), labels, variant),
        (expected, torch.autograd.grad(expected, logits)[0]),
    ):
        assert loss.isnan()
        assert torch.equal(grad.isnan().all(dim=-1), torch.tensor([True, False]))


def test_any_number_of_threads_gives_the_same_bits(variant):
    logits = torch.randn(257, 61, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(257) % 61
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(on_logits(logits, labels, variant))
    finally:
        torch.set_num_threads(before)
    for loss, grad in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(grad, found[0][1])


@pytest.mark.usefixtures("kernels")
def test_a_batch_without_labels_costs_nothing():
    x, weight, labels = random_batch(8, 9)
    nothing = torch.full_like(labels, IGNORED)
    loss, *grads = results(linear_cross_entropy, x, weight, nothing, backend="fused")
    assert loss == 0
    assert not any(grad.any() for grad in grads)
    empty = linear_cross_entropy(x[:0], weight, labels[:0], ignored=IGNORED, backend="fused")
    assert empty == 0


@pytest.mark.parametrize("label", [-1, 9, 2**40])
def test_a_label_outside_the_vocabulary_is_named(label, variant):
    x, weight, labels = random_batch(8, 9)
    labels[3] = label
    problem = f"label {label} of row 3 is outside the vocabulary of 9"
    with pytest.raises(RuntimeError, match=problem):
        fused_linear_cross_entropy(x, weight, labels, ignored=IGNORED, variant=variant)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2).long(), r"logits must be \(n, v\)"),
        (torch.zeros(3, 2).T, torch.zeros(2).long(), r"logits must be \(n, v\) contiguous"),
        (torch.zeros(2, 3).half(), torch.zeros(2).long(), "logits must be .* float32, got .*Half"),
        (torch.zeros(2, 3), torch.zeros(3).long(), "labels must be one contiguous int64 per row"),
        (torch.zeros(2, 3), torch.zeros(2).int(), "labels must be one contiguous int64 per row"),
    ],
)
def test_wrong_arguments_are_named(logits, labels, problem):
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.gptx.cross_entropy_(logits, labels, IGNORED)


@pytest.mark.usefixtures("kernels")
def test_the_fused_loss_is_an_error_where_it_cannot_run():
    x, weight = torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")
    labels = torch.zeros(2, device="meta").long()
    with pytest.raises(UserError, match="no kernel for the device type meta; mend"):
        linear_cross_entropy(x, weight, labels, ignored=IGNORED, backend="fused")


@pytest.mark.usefixtures("kernels")
def test_pytorch_knows_the_shape_and_the_write_of_the_op():
    logits, labels = torch.randn(8, 9), torch.arange(8)
    torch.library.opcheck(torch.ops.gptx.cross_entropy_.default, (logits, labels, IGNORED))
