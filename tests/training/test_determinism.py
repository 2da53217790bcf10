"""`training.deterministic` repeats a run bit by bit, and names what cannot be repeated."""

import pytest
import torch

from megatron_gptx.launcher.command_line import encode
from tests.runs import losses, start_ranks, tiny_config, train, train_rank

LAYOUTS = {
    "two stages": {"parallel__pipeline_stages": 2},
    "two replicas, ZeRO-3": {"parallel__data_replicas": 2, "parallel__zero_stage": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_have_the_same_bits(corpus, tmp_path, layout):
    options = {
        **LAYOUTS[layout],
        "training__deterministic": True,
        "training__steps": 3,
        "precision": "bf16",
        "model__dropout": 0.1,
        "training__checkpoint_activations": 1,
    }
    first, second = (train(tiny_config(corpus, tmp_path / name, **options)) for name in "ab")
    assert losses(first) == losses(second)
    assert [row["grad_norm"] for row in first] == [row["grad_norm"] for row in second]
    for path in (tmp_path / "a").rglob("*.safetensors"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def train_with_an_op_that_has_no_order(packed: str) -> None:
    from megatron_gptx.model.feedforward import FeedForward

    forward = FeedForward.forward

    def scattered(self, x):
        places = torch.arange(x.numel())
        return forward(self, torch.zeros_like(x).put_(places, x))

    FeedForward.forward = scattered
    train_rank(packed)


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_operation_that_has_no_order_is_named(corpus, tmp_path, deterministic):
    config = tiny_config(
        corpus, tmp_path / "run", training__deterministic=deterministic, training__steps=1
    )
    screen = tmp_path / "screen"
    statuses = start_ranks(train_with_an_op_that_has_no_order, 1, encode(config), screen=screen)
    message = "error on rank 0: training.deterministic: put_ has no deterministic implementation"
    assert (statuses, message in screen.read_text()) == ([2 * deterministic], deterministic)
