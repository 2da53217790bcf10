"""Metrics reach their writers, and a broken writer never stops a run."""

import json
from pathlib import Path

import pytest

from megatron_gptx.training.writers import (
    MetricsFile,
    Optional,
    TensorBoard,
    WeightsAndBiases,
    open_writers,
)
from tests.runs import tiny_config

ROW = {"step": 3, "loss": 1.5}


class Broken:
    """Fails at a chosen call."""

    def __init__(self, *, opening: bool) -> None:
        if opening:
            raise OSError("no route to host")

    def write(self, row: dict[str, float]) -> None:
        raise OSError("disk quota exceeded")

    def close(self) -> None:
        raise AssertionError("a dropped writer is not used again")


@pytest.mark.parametrize("opening", [True, False])
def test_a_writer_that_fails_is_dropped_and_says_so(opening, capsys):
    writer = Optional("wandb", lambda: Broken(opening=opening))
    writer.write(ROW)
    writer.write(ROW)
    writer.close()
    said = capsys.readouterr().err
    assert said.count("wandb is switched off") == 1
    assert ("no route" if opening else "quota") in said


def test_the_metrics_file_drops_the_future_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = MetricsFile(path, resumed_step=2, say=print)
    writer.write(ROW)
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == ROW


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    writer = MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0, say=print)
    writer.write({"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    writer.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 1, "grad_norm": None, "loss": None}


def test_tensorboard_gets_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoard(tmp_path)
    writer.write(ROW)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]


def test_wandb_works_offline_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    writer = WeightsAndBiases(tiny_config(Path("corpus"), tmp_path))
    writer.write(ROW)
    writer.close()
    assert list(tmp_path.rglob("*.wandb"))


def test_writers_follow_the_configuration(tmp_path):
    plain = open_writers(tiny_config(Path("corpus"), tmp_path), resumed_step=0, say=print)
    assert [type(writer) for writer in plain] == [MetricsFile]
    both = open_writers(
        tiny_config(Path("corpus"), tmp_path, logging__tensorboard=True),
        resumed_step=0,
        say=print,
    )
    assert [type(writer) for writer in both] == [MetricsFile, Optional]
    for writer in (*plain, *both):
        writer.close()
