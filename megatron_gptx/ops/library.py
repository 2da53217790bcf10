"""The compiled kernels in this process.

`load` is called before a model runs, never by an operation: nothing compiles inside a training
step.
"""

from collections.abc import Callable

import torch

from megatron_gptx.ops import fused_attention, fused_cross_entropy, fused_topk_softmax
from megatron_gptx.ops.build import BuildError, ensure_built


def load(say: Callable[[str], object]) -> str | None:
    """Make the kernels available to this process, building them first where they are not built.

    Args:
        say: takes a line before something that lasts.

    Returns:
        Why there are no kernels, in one line, or None where there are.
    """
    if loaded():
        return None
    try:
        torch.ops.load_library(ensure_built(say))
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f"the built library cannot be loaded: {error}"
    fused_attention.register()
    fused_topk_softmax.register()
    fused_cross_entropy.register()
    return None


def loaded() -> bool:
    """Tell whether `load` has succeeded in this process."""
    return hasattr(torch.ops.gptx, "topk_attention")
