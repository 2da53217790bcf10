"""The compiled kernels, built by whichever test comes first."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from megatron_gptx.ops.attention.cpu_kernels import fused_attention
from megatron_gptx.ops.kernels import library
from tests.ops.emulator.compile import compile_ops


@pytest.fixture(scope="session")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


@pytest.fixture(scope="session")
def emulated(kernels, tmp_path_factory) -> Any:
    """Return the CUDA ops, emulated; those that only GPUs have then run on CPU tensors, too."""
    torch.ops.load_library(compile_ops(tmp_path_factory.mktemp("emulator")))
    return torch.ops.gptx_emulated


@pytest.fixture(params=["avx512", "avx2", "default"])
def form(request, kernels) -> Callable:
    """Return the kernels of one vector width, with the reference's signature."""
    if request.param not in torch.ops.gptx.cpu_variants():
        pytest.skip(f"this CPU has no {request.param}")
    defaults = {"slopes": None, "top_k": 3, "prev_scores": None, "row_start": None}
    defaults |= {"dropout_p": 0.0, "return_scores": False}
    return partial(fused_attention, **defaults, variant=request.param)
