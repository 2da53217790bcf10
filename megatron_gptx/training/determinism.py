"""Runs that repeat bit by bit, or end naming the operation that cannot."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_gptx.config.errors import UserError

_MESSAGE = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Let PyTorch take deterministic algorithms only, in this process from now on.

    Raises:
        UserError: the code inside uses an operation that has none.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads it when the first matrix product on a GPU asks for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if found := _MESSAGE.search(str(error)):
            raise UserError(
                f"training.deterministic: {found[1]} has no deterministic implementation here; "
                "set training.deterministic: false, or leave out what uses it (the traceback in "
                "the log of this rank shows where)"
            ) from error
        raise
