"""The compiled kernels, built by whichever test comes first."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.cpu_kernels import fused_attention
from megatron_gptx.ops.attention.options import AttentionOptions
from megatron_gptx.ops.kernels import library
from tests.ops.emulator.compile import compile_ops

VARIANTS = ["avx512", "avx2", "default"]


@pytest.fixture(scope="session")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")


@pytest.fixture(scope="session")
def emulated(kernels) -> Any:
    """Return the CUDA ops, emulated; those that only GPUs have then run on CPU tensors, too."""
    torch.ops.load_library(compile_ops())
    return torch.ops.gptx_emulated


@pytest.fixture(params=VARIANTS)
def variant(request, kernels) -> str:
    """Return one vector width: of those that this CPU has, or the one that is asked for."""
    asked = os.environ.get("GPTX_CPU_CAPABILITY") or request.param
    if request.param != asked:
        pytest.skip(f"GPTX_CPU_CAPABILITY asks for {asked}")
    if request.param not in torch.ops.gptx.cpu_variants():
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


@pytest.fixture
def form(variant) -> Callable:
    """Return the kernels of one vector width, with the reference's signature."""
    return partial(_fused, variant=variant)


def _fused(
    *qkv: Tensor, variant: str, top_k: int = 3, **options: Any
) -> tuple[Tensor, Tensor | None]:
    return fused_attention(*qkv, AttentionOptions(top_k=top_k, **options), variant=variant)
