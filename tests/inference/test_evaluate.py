"""The loss of a checkpoint is the loss that training saw."""

import json
import math

import numpy as np
import pytest
import torch

from megatron_gptx.checkpoint.choice import choose_checkpoint
from megatron_gptx.checkpoint.manifest import CheckpointError
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import EvaluationConfig
from megatron_gptx.data.validation import SetLoss
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.inference.evaluate import (
    Evaluation,
    SetResult,
    as_json,
    as_text,
    evaluate,
    in_training,
    main,
)
from megatron_gptx.launcher.command_line import encode

# Sums in another order differ by a few float32 rounding steps.
ROUNDING = 64 * 2.0**-23


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(finished) -> tuple[Config, float]:
    """Train two replicas; return the configuration and the last validation loss."""
    run = finished(parallel__data_replicas=2, training__steps=4)
    return run.config, run.rows[-1]["valid_loss"]


def test_the_loss_is_the_last_one_of_training(trained):
    config, valid_loss = trained
    result = evaluate(config)
    assert result.step == 4
    assert result.valid_loss == pytest.approx(valid_loss, rel=ROUNDING)


def test_the_loss_of_another_number_of_batches_is_another_one(trained):
    config, valid_loss = trained
    more = config.evaluation.model_copy(update={"batches": 3})
    result = evaluate(config.model_copy(update={"evaluation": more}))
    assert result.valid_loss != pytest.approx(valid_loss, rel=ROUNDING)


def test_open_batches_are_as_many_as_training_took(trained):
    config, valid_loss = trained
    # Half as many sequences per step here: the sequences stay those of training.
    training = config.training.model_copy(update={"global_batch_size": 4})
    parallel = config.parallel.model_copy(update={"data_replicas": 1})
    left_open = config.model_copy(
        update={"evaluation": EvaluationConfig(), "training": training, "parallel": parallel}
    )
    result = evaluate(left_open)
    assert result.valid_loss == pytest.approx(valid_loss, rel=ROUNDING)
    found = result.sets[""].found
    assert (found.num_tokens, found.num_batches) == (2 * 8 * 32, 4)
    assert result.other_in_training is None


def test_another_number_of_batches_than_in_training_is_named(trained):
    more = trained[0].evaluation.model_copy(update={"batches": 3})
    result = evaluate(trained[0].model_copy(update={"evaluation": more}))
    shown = as_text(result)
    assert "measured on 768 tokens in 3 batches" in shown
    assert "an evaluation in training took 2 batches of 8 sequences: evaluation.batches" in shown
    assert "in training" not in as_text(evaluate(trained[0]))


def test_all_the_validation_data_is_taken_once(trained, corpus):
    config = trained[0].model_copy(update={"evaluation": EvaluationConfig(batches="all")})
    found = evaluate(config).sets[""].found
    # Of the ring of documents every token is an input once, and has one label.
    assert found.num_tokens == IndexedDataset(corpus / "valid").num_tokens
    # Neither the size of the batches nor weights change what that is.
    weighted = config.data.model_copy(update={"valid": {str(corpus / "valid"): 1.0}})
    training = config.training.model_copy(update={"global_batch_size": 6, "micro_batch_size": 3})
    other = config.model_copy(update={"data": weighted, "training": training})
    again = evaluate(other).sets[""].found
    assert again.num_tokens == found.num_tokens
    assert again.loss == pytest.approx(found.loss, rel=ROUNDING)


def test_evaluation_needs_no_training_data(trained, tmp_path):
    config, valid_loss = trained
    for train_data in (None, str(tmp_path / "gone")):
        data = config.data.model_copy(update={"train": train_data})
        result = evaluate(config.model_copy(update={"data": data}))
        assert result.valid_loss == pytest.approx(valid_loss, rel=ROUNDING)


def test_without_a_table_of_positions_the_length_may_be_another_one(trained):
    config = trained[0]
    longer = config.model.model_copy(update={"seq_length": 128})
    found = evaluate(config.model_copy(update={"model": longer})).sets[""].found
    assert found.num_tokens == 2 * 8 * 128
    assert math.isfinite(found.loss)


def test_a_configuration_that_cannot_be_read_in_a_checkpoint_is_a_message(trained):
    checkpoint = choose_checkpoint(trained[0].output.run_dir, None)
    checkpoint.manifest["config"]["evaluation"]["batches"] = "many"
    with pytest.raises(CheckpointError, match="saved in it is damaged, or of another version"):
        in_training(checkpoint)


def test_a_loss_beyond_all_numbers_is_printed(trained):
    huge = SetResult(SetLoss(1e4, 10, 1), 3.0)
    assert "perplexity inf" in as_text(Evaluation(1, {"": huge}, None))
    none = SetResult(SetLoss(math.nan, 0, 1), 3.0)
    assert as_json(Evaluation(1, {"": none}, None))["valid_loss"] is None


def test_replicas_that_were_left_open_count_as_they_were_in_training(trained):
    config, valid_loss = trained
    open_parallel = config.parallel.model_copy(update={"data_replicas": None})
    derived = config.training.model_copy(
        update={"global_batch_size": None, "micro_batch_size": 2, "accumulation_steps": 2}
    )
    left_open = config.model_copy(update={"parallel": open_parallel, "training": derived})
    assert left_open.batch.global_size == config.batch.global_size // 2
    assert evaluate(left_open).valid_loss == pytest.approx(valid_loss, rel=ROUNDING)


def test_a_batch_that_those_replicas_cannot_have_is_a_message(trained):
    config, _ = trained
    open_parallel = config.parallel.model_copy(update={"data_replicas": None})
    derived = config.training.model_copy(update={"global_batch_size": 3, "micro_batch_size": 3})
    impossible = config.model_copy(update={"parallel": open_parallel, "training": derived})
    with pytest.raises(UserError, match="trained with 2 replicas: global_batch_size 3 is no"):
        evaluate(impossible)


def test_the_entropy_is_that_of_the_validation_data(trained):
    result = evaluate(trained[0])
    # Every id of the arithmetic progressions is about as frequent as any other.
    assert 0.95 * math.log(64) < result.unigram_entropy <= math.log(64)


def test_a_run_without_validation_data_is_a_message(corpus, trained):
    config = trained[0]
    data = config.data.model_copy(update={"valid": None})
    with pytest.raises(UserError, match=r"no validation data: set data.valid or data.split"):
        evaluate(config.model_copy(update={"data": data}))


def test_the_result_is_printed_for_people_or_as_json(trained, monkeypatch, capsys):
    config, valid_loss = trained
    words = ["evaluate.py", "--config", encode(config)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"step 4: validation loss {valid_loss:.4f} nats")
    assert second == "measured on 512 tokens in 2 batches"
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    assert main() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["valid_loss"] == pytest.approx(valid_loss, rel=ROUNDING)
    assert (printed["tokens"], printed["batches"]) == (2 * 8 * 32, 2)
    assert "sets" not in printed


def test_a_checkpoint_may_be_named_once(trained, monkeypatch, capsys):
    words = ["evaluate.py", "--config", encode(trained[0]), "--checkpoint", "4"]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*words, "--checkpoint", "2"])
    assert main() == 2
    assert "argument --checkpoint: given twice, with 4 and 2" in capsys.readouterr().err


def test_the_entropy_of_all_the_data_counts_every_token_once(trained, corpus):
    parts = {str(corpus / "valid"): 9.0, str(corpus / "train"): 1.0}
    data = trained[0].data.model_copy(update={"valid": parts})
    config = trained[0].model_copy(
        update={"evaluation": EvaluationConfig(batches="all"), "data": data}
    )
    counts = sum(
        np.bincount(one.read(0, one.num_tokens), minlength=64) for one in map(IndexedDataset, parts)
    )
    shares = counts / counts.sum()
    assert evaluate(config).unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_a_missing_dataset_is_a_message(trained, tmp_path, monkeypatch, capsys):
    config = trained[0]
    data = config.data.model_copy(update={"valid": str(tmp_path / "nowhere")})
    missing = config.model_copy(update={"data": data})
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--config", encode(missing)])
    assert main() == 2
    assert "nowhere.idx: no such file" in capsys.readouterr().err
