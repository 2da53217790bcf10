"""What tests of many files share."""

from pathlib import Path

import pytest

from tests.runs import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the datasets that `tiny_config` names; nobody writes into it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder
