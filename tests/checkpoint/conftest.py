"""What tests of hostile files share."""

from pathlib import Path

import pytest

from megatron_gptx.config.schema import Config
from tests.runs import tiny_config, train


@pytest.fixture(scope="session")
def forgeable(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train a step on one rank, with files of the model and of ZeRO's optimizer.

    Nobody writes into its checkpoint; tests change links to it.
    """
    options = {"training__steps": 1, "parallel__zero_stage": 1, "precision": "bf16"}
    config = tiny_config(corpus, tmp_path_factory.mktemp("trained"), **options)
    train(config)
    return config
