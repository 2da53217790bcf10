"""The fused product computes what PyTorch's does, GELU included, and differentiates as it does."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.linear import linear, linear_reference, unsupported
from tests.numerics import assert_all_as_accurate

INF, NAN = float("inf"), float("nan")
# (n, m, f): widths below a vector's, between two of them, and whole ones.
SHAPES = [(1, 3, 5), (40, 16, 64), (130, 24, 67)]


def random_inputs(n: int, m: int, f: int, *, dtype=torch.float32, bias=True) -> list:
    generator = torch.Generator().manual_seed(n * m * f)
    shapes = [(2, n, m), (f, m), (f,)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in tensors[: 3 if bias else 2]]


def results(form, inputs: list, **options) -> tuple[Tensor, ...]:
    """Return the output, and the gradients of a sum over it."""
    y = form(*inputs, **options)
    weights = torch.linspace(-1, 1, y.shape[-1], dtype=torch.float64)
    return y, *torch.autograd.grad((y.double().sin() * weights).sum(), inputs)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_product_is_as_accurate_as_the_reference(shape, bias, activation, dtype):
    inputs = random_inputs(*shape, dtype=dtype, bias=bias)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    actual = results(linear, inputs, activation=activation, backend="fused")
    expected = results(linear_reference, inputs, activation=activation)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]
    assert_all_as_accurate(
        actual, expected, results(linear_reference, widened, activation=activation)
    )


def gelu(x: Tensor, variant: str) -> Tensor:
    """Return the kernel's activation alone: the product with 1 changes nothing."""
    return torch.ops.gptx.linear(x, torch.ones(1, 1), None, "gelu", variant)


def test_the_activation_is_accurate_everywhere(variant):
    x = torch.linspace(-15, 15, 6001)[:, None].requires_grad_()
    exact = x.detach().double().requires_grad_()
    actual, expected, truth = gelu(x, variant), functional.gelu(x), functional.gelu(exact)
    pairs = zip((actual, expected, truth), (x, x, exact), strict=True)
    slopes = [torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in pairs]
    assert_all_as_accurate([actual, slopes[0]], [expected, slopes[1]], [truth, slopes[2]])
    # PyTorch loses the small values at the left, where it adds 1 and a number near -1.
    left = (x.detach() > -5) & (x.detach() < -1)
    relative = [((y / truth) - 1).abs()[left].max() for y in (actual.double(), expected.double())]
    assert relative[0] < relative[1]


def test_the_bias_is_added_before_the_activation(variant):
    x, bias = torch.randn(40, 67), torch.randn(67)
    before = x.clone()
    out = torch.ops.gptx.bias_gelu_(before, bias, variant)
    assert torch.equal(before, x + bias)
    assert torch.equal(out, torch.ops.gptx.bias_gelu_(x + bias, None, variant))


# Parts of a vector, of a group of outputs and of a chunk of rows or inputs; and whole ones of all.
@pytest.mark.parametrize(
    ("n", "m", "f"), [(1, 1, 1), (300, 37, 45), (1024, 128, 256), (40, 300, 9)]
)
def test_gradients_of_weight_and_bias_are_added_to_what_is_there(n, m, f, variant):
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn(n, f, generator=generator), torch.randn(n, m, generator=generator)
    weight, bias = torch.full((f, m), 2.0), torch.full((f,), 3.0)
    torch.ops.gptx.add_weight_gradient_(grad, x, weight, bias, variant)
    exact = grad.double().T @ x.double() + 2, grad.double().sum(0) + 3
    assert_all_as_accurate((weight, bias), (grad.T @ x + 2, grad.sum(0) + 3), exact)


def test_any_number_of_threads_makes_the_same_gradients(variant):
    grad, x = torch.randn(300, 200), torch.randn(300, 33)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weight, bias = torch.zeros(200, 33), torch.zeros(200)
            torch.ops.gptx.add_weight_gradient_(grad, x, weight, bias, variant)
            found.append(torch.cat([weight.flatten(), bias]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_no_number_stays_so_and_infinity_passes(variant):
    y = gelu(torch.tensor([[NAN], [INF], [-INF], [0.0]]), variant)
    assert y[0].isnan()
    assert y[1] == INF
    assert torch.equal(y[2:], torch.zeros(2, 1))


def test_any_number_of_threads_activates_to_the_same_bits(variant):
    x = torch.randn(257, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = gelu(x, variant)
            found.append(torch.cat([y.detach(), *torch.autograd.grad(y.sum(), x)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_nothing_comes_of_nothing(activation):
    inputs = random_inputs(0, 3, 5)
    y, grad_x, *others = results(linear, inputs, activation=activation, backend="fused")
    assert y.shape == (2, 0, 5)
    assert grad_x.shape == (2, 0, 3)
    assert not any(x.any() for x in others)


@pytest.mark.usefixtures("kernels")
def test_a_gradient_that_nobody_needs_is_not_computed():
    x, weight, bias = (tensor.detach() for tensor in random_inputs(4, 3, 5))
    weight.requires_grad_()
    linear(x, weight, bias, activation="gelu", backend="fused").sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("x", "bias", "problem"),
    [
        (torch.zeros(2, 3, 4), None, r"x must be \(n, f\)"),
        (torch.zeros(4, 6).T, None, r"x must be \(n, f\) contiguous float32"),
        (torch.zeros(4, 6), torch.zeros(5), r"bias must be \(6,\) contiguous float32"),
        (torch.zeros(4, 6), torch.zeros(6).half(), r"bias must be .* got \[6\] Half"),
    ],
)
def test_wrong_arguments_are_named(x, bias, problem):
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.gptx.bias_gelu_(x, bias)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("grad", "x", "weight", "bias", "problem"),
    [
        ((4,), (4, 2), (3, 2), None, r"grad must be \(n, f\) and x \(n, m\), got \[4\]"),
        ((4, 3), (5, 2), (3, 2), None, r"x must be \[4, 2\] .* got \[5, 2\]"),
        ((4, 3), (4, 2), (2, 3), None, r"weight must be \[3, 2\] .* got \[2, 3\]"),
        ((4, 3), (4, 2), (3, 2), (2,), r"bias must be \[3\] .* got \[2\]"),
    ],
)
def test_shapes_of_gradients_that_do_not_match_are_named(grad, x, weight, bias, problem):
    shapes = (grad, x, weight, bias)
    tensors = [None if shape is None else torch.zeros(shape) for shape in shapes]
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.gptx.add_weight_gradient_(*tensors)


def test_a_device_without_kernels_is_named():
    assert unsupported("cuda", torch.float32) == "there is no kernel for the device type cuda"


@pytest.mark.usefixtures("kernels")
def test_the_fused_product_is_an_error_where_it_cannot_run():
    x = torch.zeros(2, 3, device="meta")
    with pytest.raises(UserError, match="no kernel for the device type meta; mend"):
        linear(x, torch.zeros(4, 3, device="meta"), backend="fused")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_pytorch_knows_shapes_and_gradients_of_the_product(activation, dtype):
    inputs = random_inputs(4, 3, 5, dtype=dtype)
    torch.library.opcheck(torch.ops.gptx.linear.default, (*inputs, activation))
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    options = {"activation": activation, "backend": "fused"}
    for actual, expected in zip(
        results(compiled, inputs, **options), results(linear, inputs, **options), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("num_rows", [(4,), (2, 2)])
def test_the_output_can_be_changed_in_place(num_rows, activation):
    x, weight, bias = random_inputs(2, 3, 5)
    y = linear(x.reshape(*num_rows, 3), weight, bias, activation=activation, backend="fused")
    expected = torch.autograd.grad(y.sum(), weight, retain_graph=True)
    assert torch.equal(torch.autograd.grad(y.add_(1).sum(), weight)[0], expected[0])


@pytest.mark.usefixtures("kernels")
def test_the_product_is_differentiated_once_only():
    x, weight = random_inputs(4, 3, 5, bias=False)
    y = linear(x, weight, backend="fused")
    with pytest.raises(RuntimeError, match="cannot be differentiated with create_graph"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.usefixtures("kernels")
def test_another_activation_is_named():
    with pytest.raises(RuntimeError, match="activation must be gelu or None, got relu"):
        torch.ops.gptx.linear(torch.zeros(2, 3), torch.zeros(4, 3), None, "relu")


@pytest.mark.usefixtures("kernels")
def test_pytorch_knows_shapes_and_writes_of_the_ops():
    x = torch.randn(4, 5)
    torch.library.opcheck(torch.ops.gptx.bias_gelu_.default, (x.clone(), torch.ones(5)))
    torch.library.opcheck(torch.ops.gptx.gelu_backward.default, (x, x.clone()))
    sought = torch.zeros(5, 5), torch.zeros(5)
    torch.library.opcheck(torch.ops.gptx.add_weight_gradient_.default, (x, x.clone(), *sought))
    torch.library.opcheck(torch.ops.gptx.product.default, (x, torch.ones(3, 5), torch.ones(3)))
    # Enough rows for the kernel.
    x = torch.randn(200, 5)
    torch.library.opcheck(torch.ops.gptx.product.default, (x, torch.ones(3, 5), None))


@pytest.mark.usefixtures("kernels")
def test_one_row_and_float64_are_taken_as_the_reference_takes_them():
    x, weight, bias = (tensor.detach() for tensor in random_inputs(4, 3, 5))
    one = linear(x[0, 0], weight, bias, activation="gelu", backend="fused")
    assert one.shape == (5,)
    wide = linear(x.double(), weight.double(), bias.double(), activation="gelu")
    assert torch.equal(
        wide, linear_reference(x.double(), weight.double(), bias.double(), activation="gelu")
    )


@pytest.mark.usefixtures("kernels")
def test_widths_that_do_not_match_are_named():
    with pytest.raises(ValueError, match=r"for x \(\.\.\., 3\), got \(5, 4\) and None"):
        linear(torch.zeros(2, 3), torch.zeros(5, 4), backend="fused")
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(4,\)"):
        linear(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(4), backend="fused")
