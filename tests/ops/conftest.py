"""The compiled kernels, built by whichever test comes first."""

import pytest

from megatron_gptx.ops import library


@pytest.fixture(scope="session")
def kernels() -> None:
    """Load the kernels, or skip what needs them."""
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")
