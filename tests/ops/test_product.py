"""The product with a weight is accurate in every layout, and the same in every company."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.numerics import assert_as_accurate

ROOT = Path(__file__).resolve().parents[2]
# (n, m, f): parts of a group of rows, of a chunk of terms, of a panel of outputs; whole ones; and
# fewer rows than the kernel takes.
SHAPES = [
    (193, 1, 1),
    (227, 37, 45),
    (252, 256, 64),
    (200, 600, 33),
    (40, 16, 64),
    (0, 4, 5),
    (199, 0, 5),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def lay(x: Tensor, layout: str) -> Tensor:
    """Return the same matrix, lying otherwise in memory."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "part of rows":
        return torch.cat([x, x + 1], dim=1)[:, : x.shape[1]]
    if layout == "every second":
        return torch.stack([x, x + 1], dim=2)[:, :, 0]
    return x


@pytest.mark.parametrize("layout", ["whole", "transposed", "part of rows", "every second"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "m", "f"), SHAPES)
def test_a_product_is_as_accurate_as_pytorchs(n, m, f, bias, layout, variant):
    x, weight, added = draw(n, m), draw(f, m), draw(f) if bias else None
    found = torch.ops.gptx.product(lay(x, layout), lay(weight, layout), added, variant)
    expected = torch.nn.functional.linear(x, weight, added)
    assert (found.shape, found.is_contiguous()) == ((n, f), True)
    if found.numel():
        wide = None if added is None else added.double()
        exact = torch.nn.functional.linear(x.double(), weight.double(), wide)
        assert_as_accurate(found, expected, exact)


def test_a_row_is_the_same_in_any_company_and_on_any_number_of_threads(variant):
    if variant == "default":
        pytest.skip("plain C++ leaves products to PyTorch, which promises no such thing")
    x, weight, bias = draw(400, 300), draw(70, 300), draw(70)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.ops.gptx.product(x, weight, bias, variant))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    some = torch.ops.gptx.product(x[101:330], weight, bias, variant)
    assert torch.equal(some, found[0][101:330])


def test_vector_widths_multiply_to_the_same_bits(kernels):
    names = [name for name in torch.ops.gptx.cpu_variants() if name != "default"]
    if len(names) < 2:
        pytest.skip("this CPU has one vector width")
    x, weight, bias = draw(400, 300), draw(70, 300), draw(70)
    first, second = (torch.ops.gptx.product(x, weight, bias, name) for name in names)
    assert torch.equal(first, second)


def test_shapes_that_do_not_match_are_named(kernels):
    with pytest.raises(RuntimeError, match=r"got \[3, 4\], \[5, 6\] and \[\]"):
        torch.ops.gptx.product(draw(3, 4), draw(5, 6), None)
    with pytest.raises(RuntimeError, match=r"got \[3, 4\], \[5, 4\] and \[4\]"):
        torch.ops.gptx.product(draw(3, 4), draw(5, 4), draw(4))


# What PyTorch calls the operations that multiply; ours has no name of its own inside `product`.
OTHERS = {"mkldnn::_linear_pointwise", "aten::linear"}
CHOICES = f"""
import torch
from torch.profiler import profile
from megatron_gptx.ops.kernels import library
assert library.load(print) is None
for n in (191, 192):
    with profile() as seen:
        torch.ops.gptx.product(torch.ones(n, 8), torch.ones(4, 8), None)
    print(*{OTHERS} & {{event.key for event in seen.key_averages()}} or ["ours"])
"""


def test_the_form_of_the_kernels_and_the_number_of_rows_choose_the_product(kernels):
    """The quickest by measurement: docs/kernels.md has the figures."""
    onednn = torch.backends.mkldnn.is_available()
    expected = {
        "avx512": ["mkldnn::_linear_pointwise"] * 2 if onednn else ["aten::linear", "ours"],
        "avx2": ["aten::linear", "ours"],
        "default": ["aten::linear", "aten::linear"],
    }
    for name in torch.ops.gptx.cpu_variants():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GPTX_CPU_CAPABILITY": name}
        command = [sys.executable, "-c", CHOICES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.split() == expected[name], name + done.stderr
