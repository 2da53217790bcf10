"""The loss of a checkpoint is the loss that training saw."""

import json
import math

import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.inference.evaluate import evaluate, main
from megatron_gptx.launcher.command import encode
from tests.runs import tiny_config, train

# Sums in another order differ by a few float32 rounding steps.
ROUNDING = 64 * 2.0**-23


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> tuple[Config, float]:
    """Train two replicas; return the configuration and the last validation loss."""
    config = tiny_config(
        corpus,
        tmp_path_factory.mktemp("run"),
        parallel__data_replicas=2,
        training__steps=4,
    )
    return config, train(config)[-1]["valid_loss"]


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
    with pytest.raises(UserError, match=r"was trained with 2 replicas: global_batch_size 3 is not"):
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
    assert f"step 4: validation loss {valid_loss:.4f} nats" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    assert main() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["valid_loss"] == pytest.approx(valid_loss, rel=ROUNDING)


def test_a_missing_dataset_is_a_message(trained, tmp_path, monkeypatch, capsys):
    config = trained[0]
    data = config.data.model_copy(update={"valid": str(tmp_path / "nowhere")})
    missing = config.model_copy(update={"data": data})
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--config", encode(missing)])
    assert main() == 2
    assert "nowhere.idx: no such file" in capsys.readouterr().err
