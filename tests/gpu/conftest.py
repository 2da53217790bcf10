"""These tests run the kernels on a GPU: `make test-gpu`."""

import pytest
import torch

from megatron_gptx.ops.kernels import library


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    """Return a GPU that the kernels are built for, or skip."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    if reason := library.load(print) or library.unusable_on(device):
        pytest.skip(f"the kernels cannot run here: {reason}")
    # The reference's products in float32 shall be that.
    torch.set_float32_matmul_precision("highest")
    return device
