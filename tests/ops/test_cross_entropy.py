"""The loss kernel computes what PyTorch does, and puts the gradient where the logits were."""

from functools import partial

import pytest
import torch
from torch import Tensor

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.cross_entropy import cross_entropy, cross_entropy_reference
from megatron_gptx.ops.fused_cross_entropy import fused_cross_entropy
from tests.numerics import assert_all_as_accurate

IGNORED = -100
# Rows shorter than any vector, with and without a rest, and one above PyTorch's blocks.
SHAPES = [(5, 1), (64, 3), (33, 32), (40, 61), (64, 4096), (9, 22003)]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["avx512", "avx2", "scalar"])
def form(request, kernels):
    """Return the kernel of one vector width."""
    if request.param not in torch.ops.gptx.cpu_variants():
        pytest.skip(f"this CPU has no {request.param}")
    return partial(fused_cross_entropy, reuse_logits=False, variant=request.param)


def random_batch(n: int, v: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * v)
    logits = 4 * torch.randn(n, v, generator=generator)
    labels = torch.randint(v, (n,), generator=generator)
    labels[::4] = IGNORED
    return logits.to(dtype).requires_grad_(), labels


def results(form, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of a multiple of it."""
    loss = form(logits, labels, ignored=IGNORED)
    return loss, torch.autograd.grad(0.3 * loss, logits)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "v"), SHAPES)
def test_the_kernel_is_as_accurate_as_the_reference(n, v, dtype, form):
    logits, labels = random_batch(n, v, dtype)
    widened = logits.detach().double().requires_grad_()
    actual = results(form, logits, labels)
    reference = results(cross_entropy_reference, logits, labels)
    exact = results(cross_entropy_reference, widened, labels)
    assert [x.dtype for x in actual] == [x.dtype for x in reference]
    assert_all_as_accurate(actual, reference, exact)


def test_probabilities_far_below_the_largest_become_zero(form):
    logits = torch.tensor([[0.0, -50.0, -87.0, -1e4, -INF]], requires_grad=True)
    loss, grad = results(form, logits, torch.tensor([0]))
    assert loss == 0
    assert torch.allclose(grad[0, 1:3], 0.3 * logits.detach()[0, 1:3].exp(), rtol=1e-6, atol=0)
    assert torch.equal(grad[0, [0, 3, 4]], torch.zeros(3))


@pytest.mark.parametrize("row", [[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])
def test_what_has_no_softmax_gives_no_number(row, form):
    logits = torch.tensor([row, [0.0, 1.0, 2.0]], requires_grad=True)
    for loss, grad in (
        results(form, logits, torch.tensor([0, 1])),
        results(cross_entropy_reference, logits, torch.tensor([0, 1])),
    ):
        assert loss.isnan()
        assert torch.equal(grad.isnan().all(dim=-1), torch.tensor([True, False]))


def test_the_gradient_takes_the_place_of_logits_that_may_be_reused(form):
    logits, labels = random_batch(64, 61)
    expected = results(form, logits, labels)
    reused = logits.detach().clone().requires_grad_()
    loss, grad = results(partial(form, reuse_logits=True), reused, labels)
    assert torch.equal(loss, expected[0])
    assert torch.equal(grad, expected[1])
    assert grad.data_ptr() == reused.data_ptr()


def test_logits_keep_their_values_unless_they_may_be_reused(form):
    logits, labels = random_batch(64, 61)
    before = logits.detach().clone()
    results(form, logits, labels)
    assert torch.equal(logits, before)


def test_a_second_backward_pass_through_reused_logits_is_refused(form):
    logits, labels = random_batch(8, 9)
    loss = form(logits * 1, labels, ignored=IGNORED, reuse_logits=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_any_number_of_threads_gives_the_same_bits(form):
    logits, labels = random_batch(257, 61)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(form, logits, labels))
    finally:
        torch.set_num_threads(before)
    for loss, grad in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(grad, found[0][1])


def test_a_batch_without_labels_costs_nothing(form):
    logits, labels = random_batch(8, 9)
    loss, grad = results(form, logits, torch.full_like(labels, IGNORED))
    assert loss == 0
    assert not grad.any()
    assert results(form, logits[:0], labels[:0])[0] == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_logits_of_any_stride_are_taken(transposed, form):
    logits, labels = random_batch(40, 40)
    given = logits.detach().T if transposed else logits.detach()[:, 1::3]
    labels = labels.clamp(max=given.shape[1] - 1)
    found = results(form, given.requires_grad_(), labels)
    expected = results(form, given.detach().contiguous().requires_grad_(), labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("label", [-1, 9, 2**40])
def test_a_label_outside_the_vocabulary_is_named(label, form):
    logits, labels = random_batch(8, 9)
    labels[3] = label
    with pytest.raises(
        RuntimeError, match=f"label {label} of row 3 is outside the vocabulary of 9"
    ):
        form(logits, labels, ignored=IGNORED)


@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2).long(), r"logits must be \(n, v\)"),
        (torch.zeros(2, 3), torch.zeros(3).long(), "labels must be one contiguous int64 per row"),
        (torch.zeros(2, 3), torch.zeros(2).int(), "labels must be one contiguous int64 per row"),
    ],
)
def test_wrong_arguments_are_named(logits, labels, problem, form):
    with pytest.raises(RuntimeError, match=problem):
        form(logits, labels, ignored=IGNORED)


def test_float64_is_refused_or_left_to_the_reference(kernels):
    logits, labels = random_batch(8, 9, torch.float64)
    with pytest.raises(UserError, match=r"float16, not torch\.float64; set ops.backend to auto"):
        cross_entropy(logits, labels, ignored=IGNORED, backend="fused")
    expected = cross_entropy_reference(logits, labels, ignored=IGNORED)
    assert torch.equal(cross_entropy(logits, labels, ignored=IGNORED), expected)


def test_pytorch_knows_shapes_and_writes_of_the_ops(kernels):
    logits, labels = random_batch(8, 9)
    arguments = logits.detach(), labels, IGNORED
    torch.library.opcheck(torch.ops.gptx.cross_entropy.default, arguments)
    _, sums = torch.ops.gptx.cross_entropy(*arguments)
    torch.library.opcheck(
        torch.ops.gptx.cross_entropy_backward_.default,
        (logits.detach().clone(), sums, labels, 0.5, IGNORED),
    )
