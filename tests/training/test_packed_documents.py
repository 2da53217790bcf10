"""In real steps of every engine, no attention and no loss crosses from one document to another."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data.loader import MicroBatch
from tests.runs import VOCAB_SIZE, start_ranks, tiny_config

HALF = VOCAB_SIZE // 2
LAYOUTS = {
    "one stage": {},
    "two stages": {"parallel__pipeline_stages": 2},
    "two stages, learned positions": {
        "parallel__pipeline_stages": 2,
        "model__position": "learned",
    },
    "two stages, recomputed": {
        "parallel__pipeline_stages": 2,
        "training__checkpoint_activations": 1,
    },
    "sequential": {"parallel__zero_stage": 2},
}


def batch_of_two_documents(*, separate: bool) -> list[MicroBatch]:
    """Return two micro-batches whose documents share no id; only the second one's labels count.

    The boundary lies elsewhere in each micro-batch, so that one given to the other would show.
    """
    generator = torch.Generator().manual_seed(0)
    batch = []
    for begin in (13, 22):
        tokens = torch.randint(HALF, (4, 33), generator=generator)
        tokens[:, begin:] += HALF
        labels = tokens[:, 1:].clone()
        labels[:, : begin + 1] = IGNORE
        row_start = torch.zeros(4, 32, dtype=torch.int32)
        row_start[:, begin:] = begin
        batch.append(MicroBatch(tokens[:, :-1], labels, row_start if separate else None))
    return batch


def step(packed: str, folder: str, separate: bool) -> None:
    """Take one step and write the embedding before and after it."""
    from megatron_gptx.distributed.process import Process, run_worker
    from megatron_gptx.launcher.command_line import decode
    from megatron_gptx.training.build import build_engine

    config = decode(packed)

    def work(process: Process) -> None:
        engine = build_engine(config, process, say=lambda text: None)
        table = dict(engine.deepspeed.module.local_layers()).get(0)
        before = table.tokens.weight.detach().clone() if table else None
        engine.train_step(batch_of_two_documents(separate=separate), step=0, lr=0.01)
        if table:
            torch.save([before, table.tokens.weight.detach()], Path(folder) / "embedding.pt")

    run_worker(work, run_dir=Path(folder), launch=config.launch)


def moved_rows(folder: Path, separate: bool, options: dict[str, object]) -> Tensor:
    """Return which rows of the embedding a step moved, (v,) bool."""
    from megatron_gptx.launcher.command_line import encode

    options = {
        "training__global_batch_size": 8,
        "training__micro_batch_size": 4,
        # A fresh ReZero gate is 0, and nothing would attend to anything.
        "model__residual": "pre_norm",
        **options,
    }
    config = tiny_config(folder, folder, **options)
    ranks = config.parallel.pipeline_stages
    assert start_ranks(step, ranks, encode(config), str(folder), separate) == [0] * ranks
    before, after = torch.load(folder / "embedding.pt", weights_only=True)
    return (before != after).any(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_on_one_document_moves_no_embedding_of_another(tmp_path, layout):
    moved = moved_rows(tmp_path, separate=True, options=LAYOUTS[layout])
    assert not moved[:HALF].any()
    assert moved[HALF:].any()


def test_without_boundaries_it_moves_them(tmp_path):
    moved = moved_rows(tmp_path, separate=False, options={})
    assert moved[:HALF].any()
