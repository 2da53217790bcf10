"""The compiled kernels in this process.

A run calls `load` before its first step, so that nothing compiles inside one. Operations that are
called by themselves load the kernels through `problem_on`.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.kernels.build import BuildError, ensure_built, find_built
from megatron_gptx.ops.kernels.nvcc import serves


def load(say: Callable[[str], object]) -> str | None:
    """Make the kernels available to this process, building them first where they are not built.

    Args:
        say: takes a line before something that lasts.

    Returns:
        Why there are no kernels, in one line, or None where there are.

    Raises:
        UserError: GPTX_CPU_CAPABILITY names what this CPU cannot run.
    """
    problem = None if loaded() else _load(say)
    if problem is None:
        cpu_capability()
    return problem


def _load(say: Callable[[str], object]) -> str | None:
    try:
        torch.ops.load_library(ensure_built(say))
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f"the built library cannot be loaded: {error}"
    # The operations import this module, so that each of them can load the kernels by itself.
    from megatron_gptx.ops import linear, linear_cross_entropy
    from megatron_gptx.ops.attention import cpu_kernels, topk_softmax_kernels

    cpu_kernels.register()
    topk_softmax_kernels.register()
    linear_cross_entropy.register()
    linear.register()
    return None


def problem_on(device: torch.device) -> str | None:
    """Return why the kernels cannot run on a device, or None where they can and are loaded.

    They are loaded by the first call, and built if they have to be; where that fails, it is not
    tried again. While torch.compile traces, kernels are loaded but not built.
    """
    if loaded():
        return unusable_on(device)
    problem = _load_traced() if torch.compiler.is_compiling() else _load_once()
    return problem or unusable_on(device)


@cache
def _load_once() -> str | None:
    return load(logging.getLogger(__name__).warning)


def _load_traced() -> str | None:
    try:
        if find_built() is not None:
            return _load_once()
    except BuildError as error:
        return str(error)
    return (
        "its kernels are not built, and nothing is while torch.compile traces; run "
        "`python -m megatron_gptx.ops.kernels.build` first"
    )


# A call that runs while torch.compile traces, and leaves its result in the graph. This is all that
# torch.compiler.assume_constant_result does, besides importing the compiler, which takes seconds.
_load_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def loaded() -> bool:
    """Tell whether `load` has succeeded in this process."""
    return hasattr(torch.ops.gptx, "topk_attention")


def cpu_capability() -> str:
    """Return which form of the loaded kernels a CPU runs: `avx512`, `avx2` or `default`.

    GPTX_CPU_CAPABILITY names it, or else it is the quickest of `torch.ops.gptx.cpu_variants()`.

    Raises:
        UserError: the variable names what this CPU cannot run.
    """
    try:
        chosen: str = torch.ops.gptx.cpu_capability()
    except RuntimeError as error:
        raise UserError(str(error).partition("\n")[0]) from None
    return chosen


def unusable_on(device: torch.device) -> str | None:
    """Return why the loaded kernels cannot run on a device, or None where they can."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there is no kernel for the device type {device.type}"
    built: list[str] = torch.ops.gptx.cuda_architectures()
    if not built:
        return (
            "the kernels have no CUDA half: it is built where there is nvcc, and a visible GPU or "
            "TORCH_CUDA_ARCH_LIST"
        )
    capability = torch.cuda.get_device_capability(device)
    if not serves(built, capability):
        name, needed = torch.cuda.get_device_name(device), "{}.{}".format(*capability)
        return (
            f"the CUDA kernels were compiled for {', '.join(built)}, and {name} needs {needed}; "
            f"build them with TORCH_CUDA_ARCH_LIST={needed}"
        )
    return None
