"""Each validation set gets a loss of its own, the same in training and from a checkpoint."""

import math
from pathlib import Path

import numpy as np
import pytest

from megatron_gptx.data.validation import SetLoss
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.inference.evaluate import as_json, as_text, evaluate
from megatron_gptx.training.evaluate import metrics, report
from tests.runs import tiny_config, train

# Sums in another order differ by a few float32 rounding steps.
ROUNDING = 64 * 2.0**-23
LAYOUTS = {
    "replicas of a pipeline": {"parallel__pipeline_stages": 2, "parallel__data_replicas": 2},
    "ZeRO-2": {"parallel__zero_stage": 2, "parallel__data_replicas": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_of_every_named_set_is_evaluated_in_training_as_from_the_checkpoint(
    corpus, tmp_path, layout
):
    valid_data, small_data = str(corpus / "valid"), str(tmp_path / "small")
    with IndexedDatasetWriter(small_data, np.uint16) as writer:
        writer.add_document(np.arange(500) % 64)
    config = tiny_config(
        corpus,
        tmp_path / "run",
        data__valid={"one": valid_data, "both": {valid_data: 1.0, small_data: 3.0}},
        evaluation__batches="all",
        training__steps=2,
        **LAYOUTS[layout],
    )
    row = train(config)[-1]
    result = evaluate(config)
    tokens = {name: one.found.num_tokens for name, one in result.sets.items()}
    one, other = (IndexedDataset(prefix).num_tokens for prefix in (valid_data, small_data))
    assert tokens == {"one": one, "both": one + other}
    for name, found in result.sets.items():
        assert found.found.loss == pytest.approx(row[f"valid_loss/{name}"], rel=ROUNDING)
    assert row["valid_loss/one"] != row["valid_loss/both"]
    assert row["valid_loss"] == pytest.approx(result.valid_loss, rel=ROUNDING)
    assert as_json(result)["sets"].keys() == {"one", "both"}
    assert "step 2: validation loss of one " in as_text(result)
    assert f"step 2: mean validation loss {result.valid_loss:.4f}" in as_text(result)


def test_the_screen_and_the_metrics_name_each_set_and_the_mean():
    losses = {"code": SetLoss(2.0, 4096, 2), "prose": SetLoss(4.0, 512, 1)}
    assert report(losses, 7).splitlines() == [
        "step 7: validation loss of code 2.0000 (4,096 tokens in 2 batches)",
        "step 7: validation loss of prose 4.0000 (512 tokens in 1 batch)",
        "step 7: mean validation loss 3.0000",
    ]
    assert metrics(losses) == {"valid_loss": 3.0, "valid_loss/code": 2.0, "valid_loss/prose": 4.0}


def test_a_set_without_a_name_is_the_validation_loss():
    losses = {"": SetLoss(2.0, 4096, 2)}
    assert report(losses, 7) == "step 7: validation loss 2.0000 (4,096 tokens in 2 batches)"
    assert metrics(losses) == {"valid_loss": 2.0}
    assert math.isnan(metrics({"": SetLoss(math.nan, 0, 1)})["valid_loss"])


def test_the_run_takes_its_tokenizer_along(corpus, tmp_path):
    config = tiny_config(
        corpus, tmp_path, training__steps=1, data__tokenizer="bytes", model__vocab_size=257
    )
    train(config)
    assert (Path(config.output.run_dir) / "tokenizer" / "manifest.json").is_file()
