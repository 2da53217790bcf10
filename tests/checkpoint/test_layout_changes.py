"""What one arrangement of ranks has saved, any other one goes on from."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import Checkpoint
from megatron_gptx.checkpoint.optimizer_state import MASTER
from megatron_gptx.checkpoint.safetensors_files import SavedLayer
from megatron_gptx.config.optimizers import OPTIMIZERS
from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.command_line import encode
from megatron_gptx.model.layer_list import build_layer
from tests.pairs import cover, extended
from tests.runs import Finished, start_ranks, tiny_config

STEP = 3
# Twenty steps of training multiply a rounding error; here one step follows.
ROUNDING = 16 * 2.0**-23


class Layout(NamedTuple):
    """An arrangement of ranks."""

    stages: int
    replicas: int
    zero_stage: int
    precision: str = "fp32"

    def options(self) -> dict[str, Any]:
        return {
            "parallel__pipeline_stages": self.stages,
            "parallel__data_replicas": self.replicas,
            "parallel__zero_stage": self.zero_stage,
            "precision": self.precision,
            "optimizer__gradient_clipping": 0.5,
            # The same arithmetic in every layout: rounding then never lifts a key over another.
            "ops__backend": "reference",
        }


MATRIX = [Layout(*choice) for choice in product((1, 2, 3), (1, 2), (0, 1))]
PAIRS = [(saved, resumed) for saved, resumed in product(MATRIX, MATRIX) if saved != resumed]
OTHERS = [
    (Layout(2, 1, 0), Layout(1, 2, 3)),
    (Layout(1, 2, 3), Layout(2, 2, 1)),
    (Layout(1, 2, 2), Layout(3, 1, 0)),
    (Layout(2, 1, 1, "bf16"), Layout(1, 2, 1, "bf16")),
    (Layout(1, 2, 3, "bf16"), Layout(2, 1, 1, "bf16")),
    (Layout(1, 2, 1, "bf16"), Layout(2, 1, 0)),
    (Layout(2, 2, 1), Layout(1, 1, 1, "bf16")),
]
# Those of few ranks first, so that a cover takes them.
PAIRS.sort(key=lambda pair: sum(layout.stages * layout.replicas for layout in pair))
OFTEN = cover([before[:3] + after[:3] for before, after in PAIRS])


@pytest.fixture
def saved(finished: Callable[..., Finished]) -> Callable[[Layout], tuple[Path, float]]:
    """Train in a layout beyond a checkpoint; return the run folder and the next step's loss."""

    def saved(layout: Layout) -> tuple[Path, float]:
        options = {"checkpoint__interval": STEP, "training__steps": STEP + 1}
        run = finished(**options, **layout.options())
        return run.folder, run.rows[STEP]["loss"]

    return saved


def resume_and_go_on(packed: str, there: Path) -> None:
    """Save what was loaded in another place, as this layout holds it, then train for a step."""
    from megatron_gptx.checkpoint.load import resume
    from megatron_gptx.checkpoint.save import Saver
    from megatron_gptx.distributed.process import Process, run_worker
    from megatron_gptx.launcher.command_line import decode
    from megatron_gptx.training.build import build_engine
    from megatron_gptx.training.pretrain import pretrain
    from megatron_gptx.training.stop_signals import Stop

    config = decode(packed)
    elsewhere = config.model_copy(
        update={"output": config.output.model_copy(update={"run_dir": str(there)})}
    )

    def work(process: Process) -> None:
        engine = build_engine(config, process, say=print)
        loaded = resume(engine.deepspeed, config=config, say=print)
        assert loaded is not None
        saver = Saver(engine.deepspeed, elsewhere, replica=engine.replica, say=print)
        saver.save(loaded.manifest["state"], last=True)
        pretrain(config, process, Stop(Path(config.output.run_dir)))

    run_worker(work, run_dir=Path(config.output.run_dir), launch=config.launch)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(pair if pair[0][:3] + pair[1][:3] in OFTEN else extended(*pair) for pair in PAIRS),
        *OTHERS,
    ],
    ids=lambda layout: "-".join(map(str, layout)),
)
def test_another_layout_goes_on_as_if_nothing_had_changed(saved, corpus, tmp_path, before, after):
    source, next_loss = saved(before)
    run_dir, there = tmp_path / "run", tmp_path / "there"
    config = tiny_config(corpus, run_dir, training__steps=STEP + 1, **after.options())
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "latest").write_text(f"step-{STEP:08d}\n")
    (run_dir / "checkpoints" / f"step-{STEP:08d}").symlink_to(
        source / "checkpoints" / f"step-{STEP:08d}"
    )
    ranks = after.stages * after.replicas
    assert start_ranks(resume_and_go_on, ranks, encode(config), there) == [0] * ranks
    assert_same_state(config, source / "checkpoints" / f"step-{STEP:08d}", newest(there))
    loss = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    if before._replace(stages=1) == after._replace(stages=1):
        assert loss == next_loss  # the same sums in the same order
    rounding = 2.0**-8 if "bf16" in (*before, *after) else ROUNDING
    assert loss == pytest.approx(next_loss, rel=rounding)


def assert_same_state(config: Config, before: Path, after: Checkpoint | None) -> None:
    """Compare every weight and moment of two checkpoints, bit by bit."""
    assert after is not None
    for index in range(config.model.num_pipeline_layers):
        layers = [SavedLayer(path, index) for path in (before, after.path)]
        for name, parameter in build_layer(config.model, index, 0).named_parameters():
            for moment in OPTIMIZERS["adamw"].moments:
                values = [layer.moment(name, moment, 0, parameter.numel()) for layer in layers]
                assert torch.equal(*values), (index, name, moment)
                assert values[0].any() or name.endswith("position.weight"), (index, name, moment)
            weights = [layer.weight(name, exact=True) for layer in layers]
            if (name, MASTER) in layers[0].ranges or (name, MASTER) not in layers[1].ranges:
                assert torch.equal(*weights), (index, name)
