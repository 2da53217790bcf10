"""What tests of hostile files share."""

from collections.abc import Callable

import pytest

from megatron_gptx.config.schema import Config
from tests.runs import Finished


@pytest.fixture(scope="session")
def forgeable(finished: Callable[..., Finished]) -> Config:
    """Train a step on one rank, with files of the model and of ZeRO's optimizer.

    Nobody writes into its checkpoint; tests change links to it.
    """
    return finished(training__steps=1, parallel__zero_stage=1, precision="bf16").config
