"""GPTX_CPU_CAPABILITY decides which form of the kernels a CPU runs, or is an error."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.pairs import extended

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["avx512", "avx2", "default"]
REPORT = """
from megatron_gptx.ops.kernels import library
from tests.ops.kernels.test_cpu_capability import results_of_every_op
assert library.load(print) is None
print(library.cpu_capability(), *results_of_every_op("best"))
"""
LOAD = "from megatron_gptx.ops.kernels import library; library.load(print)"


def digest(*found: Tensor) -> str:
    """Return a name for some bits."""
    total = hashlib.sha256()
    for x in found:
        total.update(x.contiguous().numpy().tobytes())
    return total.hexdigest()[:12]


def results_of_every_op(variant: str) -> list[str]:
    """Return a digest of what each op that has forms for several vector widths computes."""
    ops, generator = torch.ops.gptx, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, v, grad = draw(4, 1, 2, 70, 20).unbind()
    scores, slopes = draw(1, 2, 70, 70), torch.tensor([0.5, 0.25])
    options = slopes, 4, None, 0.0, 0
    forward = ops.topk_attention(q, k, v, scores, *options, True, variant)
    in_place = ops.topk_attention_(q, k, v, scores.clone(), *options, variant)
    saved = forward[2], forward[3], None, 0.0, 0
    backward = ops.topk_attention_backward(grad, scores, q, k, v, *saved, True, variant)
    backward_in_place = ops.topk_attention_backward_(grad, scores.clone(), q, k, v, *saved, variant)
    x, weight, bias, y = draw(50, 30), torch.zeros(40, 30), torch.zeros(40), draw(50, 40)
    ops.add_weight_gradient_(y, x, weight, bias, variant)
    logits, labels = draw(9, 50), torch.arange(9)
    loss = ops.cross_entropy_(logits, labels, -1, variant)
    found = [
        digest(*forward),
        digest(*in_place),
        digest(*backward),
        digest(*backward_in_place),
        digest(weight, bias),
        digest(loss, logits),
        digest(ops.bias_gelu_(draw(7, 50), draw(50), variant)),
        digest(ops.gelu_backward(draw(7, 50), draw(7, 50), variant)),
    ]
    if variant == "best":  # this one op takes no name
        found.append(digest(*ops.topk_softmax(draw(1, 2, 60, 60), *options)))
    return found


def python(code: str, capability: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose kernels are told what to run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GPTX_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_variable_decides_for_every_op(kernels):
    found = {}
    for name in torch.ops.gptx.cpu_variants():
        done = python(REPORT, name)
        assert done.returncode == 0, done.stderr
        used, *digests = done.stdout.split()
        *named, softmax = digests
        assert (used, named) == (name, results_of_every_op(name))
        found[name] = [*named, softmax]
    # Plain C++ multiplies and adds in two roundings: no op can have run another form unnoticed.
    for name, digests in found.items():
        if name != "default":
            assert all(a != b for a, b in zip(digests, found["default"], strict=True))


def test_an_empty_variable_leaves_the_choice_to_us(kernels):
    done = python(f"{LOAD}; print(library.cpu_capability())", "")
    assert done.stdout.split() == [torch.ops.gptx.cpu_variants()[0]], done.stderr


@pytest.mark.parametrize("value", ["AVX2", extended("sse4"), extended("avx2 ")])
def test_an_unknown_value_is_an_error_and_no_fallback(value, kernels):
    done = python(LOAD, value)
    assert done.returncode == 1
    expected = f"UserError: GPTX_CPU_CAPABILITY must be avx512, avx2 or default, got '{value}'"
    assert done.stderr.splitlines()[-1] == f"megatron_gptx.config.errors.{expected}"


def test_a_form_that_the_cpu_lacks_is_an_error_and_no_fallback(kernels):
    lacking = [name for name in NAMES if name not in torch.ops.gptx.cpu_variants()]
    if not lacking:
        pytest.skip("this CPU has every form")
    done = python(LOAD, lacking[0])
    assert done.returncode == 1
    assert f"UserError: GPTX_CPU_CAPABILITY is {lacking[0]}, which this CPU" in done.stderr


def test_each_session_says_what_its_numbers_depend_on(kernels):
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", f"{__file__}"]
    environment = {**os.environ, "GPTX_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    first = done.stdout.splitlines()[0]
    assert first.startswith("kernels: default (GPTX_CPU_CAPABILITY default), ATen: ")
    assert f"torch {torch.__version__}" in first
