"""Losses that jump send a run back to before them, whether or not it is stopped meanwhile."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_gptx.data.build import build_datasets
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.distributed.exit_status import STOPPED
from tests.checkpoints import weights
from tests.pairs import extended
from tests.runs import VOCAB_SIZE, Finished, start, tiny_config, train, train_once, without_speed

BATCH, LENGTH, NUM_DOCUMENTS = 8, 33, 400
# Steps whose samples are noise, counted from 1, and the checkpoint before them.
NOISE, BEFORE, LAST = (29, 30, 31), 24, 34
OPTIONS: dict[str, Any] = {
    "data__packing": "document",
    "data__valid": None,
    "training__steps": LAST,
    "training__global_batch_size": BATCH,
    "checkpoint__interval": 8,
    "checkpoint__keep_last": 1,
    "guard__spike_factor": 2.0,
    "guard__max_bad_steps": len(NOISE),
    "model__dropout": 0.1,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO 1, DP 2": {"parallel__data_replicas": 2, "parallel__zero_stage": 1},
    "bf16, PP 2": {"parallel__pipeline_stages": 2, "precision": "bf16"},
}


def write(folder: Path, documents: Any) -> None:
    with IndexedDatasetWriter(folder / "train", np.uint16) as writer:
        for document in documents:
            writer.add_document(document)


@pytest.fixture(scope="module")
def spiky(tmp_path_factory) -> Path:
    """Write documents that are soon learned, but for those that some steps are to meet."""
    folder = tmp_path_factory.mktemp("spiky")
    write(folder, np.repeat(np.arange(NUM_DOCUMENTS), LENGTH).reshape(-1, LENGTH))
    config = tiny_config(folder, folder, **OPTIONS)
    numbered = build_datasets(
        config.data, seq_length=config.model.seq_length, seed=config.training.seed
    ).train
    first, end = (NOISE[0] - 1) * BATCH, NOISE[-1] * BATCH
    noise = set(numbered.read_samples(np.arange(first, end)).tokens[:, 0].tolist())
    assert len(noise) == end - first
    random = np.random.default_rng(0)
    write(
        folder,
        (
            random.integers(VOCAB_SIZE, size=LENGTH)
            if number in noise
            else (number + np.arange(LENGTH)) % VOCAB_SIZE
            for number in range(NUM_DOCUMENTS)
        ),
    )
    return folder


@pytest.fixture(scope="module")
def uninterrupted(spiky, shared):
    """Return what trains a layout to the end; equal ones train once."""

    def uninterrupted(layout: str) -> Finished:
        return train_once(tiny_config(spiky, shared, **OPTIONS, **LAYOUTS[layout]), shared)

    return uninterrupted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spikes_in_a_row_send_a_run_back_behind_their_samples(uninterrupted, layout):
    rows = uninterrupted(layout).rows
    log = (uninterrupted(layout).folder / "logs" / "rank-0.log").read_text()
    for step in NOISE:
        assert re.search(rf"^step {step}: loss .* times the median .*, applied; ", log, re.M)
    behind = NOISE[-1] * BATCH - 1
    assert f"back to step {BEFORE}, on behind sample {behind} (return 1 of at most 3)" in log
    assert [row["bad_steps"] for row in rows] == [0] * BEFORE + [len(NOISE)] * (LAST - BEFORE)
    assert rows[-1]["loss"] < rows[BEFORE]["loss"]


# Amid the spikes once and twice, and when the run goes back.
@pytest.mark.parametrize(
    ("layout", "stops"),
    [
        ("ZeRO 1, DP 2", NOISE[:2]),
        ("bf16, PP 2", NOISE[2:]),
        extended("ZeRO 1, DP 2", NOISE[:1]),
        extended("ZeRO 1, DP 2", NOISE[2:]),
        extended("bf16, PP 2", NOISE[:1]),
        extended("bf16, PP 2", NOISE[:2]),
    ],
)
def test_a_run_that_is_stopped_amid_spikes_ends_as_one_that_is_not(
    spiky, uninterrupted, tmp_path, monkeypatch, layout, stops
):
    whole = uninterrupted(layout)
    config = tiny_config(spiky, tmp_path, **OPTIONS, **LAYOUTS[layout])
    for step in stops:
        here = f"at=step:rank=0:step={step - 1}"
        # Half a second, in which the signal is noticed.
        monkeypatch.setenv("GPTX_FAULT", " ".join([f"term:{here}", *[f"slow:{here}"] * 10]))
        assert start(config) == [STOPPED, STOPPED]
        saved = BEFORE if step == NOISE[-1] else step
        said = (tmp_path / "logs" / ".stopped").read_text()
        assert said.startswith(f"stopped by SIGTERM at step {saved}; saved ")
    monkeypatch.delenv("GPTX_FAULT")
    assert without_speed(train(config)) == without_speed(whole.rows)
    # No sample is taken again that led to a return.
    assert (tmp_path / "logs" / "rank-0.log").read_text().count("back to step") == 1
    after, expected = (weights(folder, step=LAST) for folder in (tmp_path, whole.folder))
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in after)
