"""Whether an operation runs on the kernels or in plain PyTorch."""

import warnings

import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.ops import Backend
from megatron_gptx.ops.kernels import library


def runs_fused(
    operation: str, backend: Backend, unsupported: str | None, device: torch.device
) -> bool:
    """Return whether the kernels run; where `auto` asks for them in vain, warn of plain PyTorch.

    Kernels that are not loaded yet are loaded, and built if they have to be. A run does both before
    its first step, and its modules say `fused` or `reference`.

    Args:
        operation: how messages call it.
        backend: what its caller asked for.
        unsupported: why the kernels cannot take the input, or None where they can.
        device: where the input lies.

    Raises:
        UserError: the kernels were asked for and cannot run.
    """
    if backend == "reference":
        return False
    problem = unsupported or library.problem_on(device)
    if problem is None:
        return True
    if backend == "fused":
        raise UserError(
            f"the fused {operation} cannot run: {problem}; mend that, or pass backend='auto', "
            "which takes plain PyTorch where it has to"
        )
    _warn(
        f"{operation} runs in plain PyTorch, since {problem}; backend='reference' asks for that "
        "without this warning"
    )
    return False


def _warn(message: str) -> None:
    # Python shows it once for each line that calls the operation: above this, two frames of ours.
    warnings.warn(message, stacklevel=4)


# To torch.compile a call that leaves nothing in the graph: see library.py.
_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]
