"""A run over several datasets shows its plan, logs how far each is, and knows no replicas."""

from pathlib import Path

import numpy as np
import pytest

from megatron_gptx.dataset.writer import IndexedDatasetWriter
from tests.runs import losses, start, tiny_config, train, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    with IndexedDatasetWriter(folder / "more", np.uint16) as writer:
        writer.add_document(np.arange(1000) % 64)
    return folder


def blend(corpus: Path) -> dict[str, object]:
    weights = {str(corpus / "train"): 3.0, str(corpus / "more"): 1.0}
    return {"data__train": weights, "ops__backend": "reference"}


def test_plan_and_progress_of_each_dataset_are_shown_and_logged(corpus, tmp_path):
    screen = tmp_path / "screen"
    config = tiny_config(corpus, tmp_path, **blend(corpus), training__steps=4)
    assert start(config, screen=screen) == [0]
    rows = train(config)  # finished: only reads what was logged
    more = str(corpus / "more")
    assert [row[f"tokens/{more}"] for row in rows] == [2 * 32, 4 * 32, 6 * 32, 8 * 32]
    assert rows[-1][f"epochs/{more}"] == 8 / 32
    assert rows[-1][f"tokens/{corpus / 'train'}"] == 24 * 32
    shown = screen.read_text()
    for title in ("data of 4 steps", "data seen"):
        lines = shown.partition(title)[2].splitlines()
        assert lines[1].split()[1:3] == ["75.00%", "768"]
        assert lines[2].split() == [more, "25.00%", "256", "0.250"]
    assert "waited for data: " in shown


def test_two_replicas_see_the_samples_of_one(corpus, tmp_path):
    one, two = (
        losses(
            train(
                tiny_config(
                    corpus,
                    tmp_path / str(replicas),
                    **blend(corpus),
                    training__steps=5,
                    parallel__data_replicas=replicas,
                    # Runs that differ by rounding may select other keys where two nearly tie.
                    model__attention__top_k=32,
                )
            )
        )
        for replicas in (1, 2)
    )
    assert two == pytest.approx(one, rel=64 * 2.0**-23)
