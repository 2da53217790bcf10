"""What ranks record reaches rank 0's row, whoever records what and when."""

import json
from pathlib import Path

import pytest

from tests.runs import start_ranks

RANKS = 3


def record_on_a_rank(folder: Path) -> None:
    """Take four steps in which ranks record different names; leave the rows of this rank."""
    import torch
    import torch.distributed as dist

    from megatron_gptx.training.recorder import NOTHING, Recorder

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    recorder = Recorder(torch.device("cpu"))
    rows = []
    for step in range(1, 5):
        recorder.begin(step)
        if step == 1:
            recorder.record("mean", float(rank))
            recorder.record("sum", torch.tensor([2.0 + rank]), reduce="sum")
            recorder.record("max", -1.0 - rank, reduce="max")
            recorder.record("norm", [2.0, 3.0, 6.0][rank], reduce="norm")
            if rank == 1:
                recorder.record("own", 5.0)
                recorder.record("own", 8.0)
        if step == 2:
            weight = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
            recorder.record("mean", weight)
            weight.data.mul_(100)  # the update that comes before the end of the step
        if step >= 2 and rank == 2:
            recorder.record("late", float("nan"), reduce="max", every=2)
        news = torch.tensor(recorder.news)
        dist.all_reduce(news, op=dist.ReduceOp.MAX)
        rows.append(recorder.collect(int(news)))
    if rank == 0:
        # No other rank takes part, so that a collective would fail or wait.
        assert recorder.news == NOTHING
        rows.append(recorder.collect(NOTHING))
    (folder / f"rank-{rank}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return what each rank has collected in each step."""
    folder = tmp_path_factory.mktemp("recorder")
    assert start_ranks(record_on_a_rank, RANKS, folder) == [0] * RANKS
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


def test_values_of_all_ranks_are_reduced_as_asked(rows):
    expected = {"mean": 1.0, "sum": 9.0, "max": -1.0, "norm": 7.0, "own": 6.5}
    assert [found[0] for found in rows] == [expected] * RANKS


def test_a_value_is_the_one_of_the_moment_that_recorded_it(rows):
    assert rows[0][1]["mean"] == 1.0


def test_a_name_that_comes_later_is_in_the_rows_of_its_steps_alone(rows):
    assert [found.keys() for found in rows[0]] == [
        {"mean", "sum", "max", "norm", "own"},
        {"mean", "late"},
        set(),
        {"late"},
        set(),
    ]


def test_a_value_that_is_no_number_is_not_hidden(rows):
    assert rows[0][3]["late"] != rows[0][3]["late"]


def test_one_name_is_reduced_in_one_way():
    import torch

    from megatron_gptx.training.recorder import Recorder

    recorder = Recorder(torch.device("cpu"))
    recorder.record("loss", 1.0)
    with pytest.raises(AssertionError, match="loss is reduced by mean, not by sum"):
        recorder.record("loss", 1.0, reduce="sum")
