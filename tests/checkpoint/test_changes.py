"""What has changed since a save: values are compared, and old checkpoints stay readable."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_gptx.checkpoint.changes import changed_options, check_model
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.sequential import GPTXSequential
from tests.runs import losses, tiny_config, train

# What version 0.1.0 saved in bf16, on two stages with ZeRO-1, after three steps.
GOLDEN = Path(__file__).parent / "golden"
OPTIONS: dict[str, Any] = {
    "model__num_layers": 2,
    "model__hidden_size": 8,
    "model__num_heads": 2,
    "model__seq_length": 16,
    "model__attention__top_k": 4,
}


class Younger(ModelConfig):
    """The model of a version to come, with an option that today's checkpoints do not know."""

    gated: bool = False


def golden() -> Checkpoint:
    found = newest(GOLDEN / "format-4")
    assert found is not None
    return found


def saved(model: ModelConfig) -> Checkpoint:
    dumped = json.loads(json.dumps(model.model_dump()))
    return Checkpoint(Path("step-00000001"), {"config": {"model": dumped}})


def test_an_old_checkpoint_goes_on_with_the_losses_it_had_in_its_time(corpus, tmp_path):
    shutil.copytree(GOLDEN / "format-4", tmp_path, dirs_exist_ok=True)
    rows = train(
        tiny_config(
            corpus,
            tmp_path,
            **OPTIONS,
            training__steps=6,
            ops__backend="reference",
            checkpoint__accept_changes=True,  # the data lie elsewhere, and nobody knows theirs
        )
    )
    assert [row["step"] for row in rows] == [4, 5, 6]
    # Float32 rounding of another processor, amplified over three steps.
    golden = json.loads((GOLDEN / "losses.json").read_text())
    assert losses(rows) == pytest.approx(golden, rel=1e-4)


def test_an_old_checkpoint_gives_its_weights_bit_by_bit(corpus, tmp_path):
    config = tiny_config(corpus, tmp_path, **OPTIONS)
    check_model(golden(), config.model)
    model = GPTXSequential(config.model)
    load_layers(golden(), model.local_layers())
    for path in (golden().path / "weights").iterdir():
        layer = model.local_layers()[int(path.stem.removeprefix("layer-"))]
        for name, tensor in load_file(path).items():
            assert torch.equal(layer.state_dict()[name], tensor.float())


def test_an_option_that_an_old_checkpoint_does_not_know_had_its_default():
    model = golden().manifest["config"]["model"]
    check_model(golden(), Younger.model_validate(model))
    with pytest.raises(CheckpointError, match="gated: False in the checkpoint, True in the conf"):
        check_model(golden(), Younger.model_validate({**model, "gated": True}))


def test_an_option_that_this_version_does_not_know_is_another_model():
    model = Younger.model_validate(golden().manifest["config"]["model"])
    with pytest.raises(CheckpointError, match=r"model\.gated: false in the checkpoint, an option"):
        check_model(saved(model), ModelConfig.model_validate(golden().manifest["config"]["model"]))


def test_an_option_of_another_section_that_an_old_checkpoint_does_not_know_has_not_changed(
    corpus, tmp_path
):
    config = tiny_config(corpus, tmp_path)
    manifest: dict[str, Any] = {"config": config.model_dump()}
    del manifest["config"]["guard"], manifest["config"]["training"]["deterministic"]
    assert changed_options(Checkpoint(tmp_path, manifest), config) == []


SPELLINGS = [
    {"model__ffn_hidden_size": 64},
    {"model__attention__top_k": 32},
    {"model__attention__top_k": None},
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_a_default_that_is_written_out_is_the_same_model(corpus, tmp_path, spelling):
    plain = tiny_config(corpus, tmp_path, model__attention__top_k=None).model
    spelt = tiny_config(corpus, tmp_path, **{"model__attention__top_k": None, **spelling}).model
    check_model(saved(plain), spelt)
    check_model(saved(spelt), plain)


def test_another_width_is_another_model_however_it_is_spelt(corpus, tmp_path):
    plain, wide = (
        tiny_config(corpus, tmp_path, model__ffn_hidden_size=width).model for width in (None, 128)
    )
    with pytest.raises(CheckpointError, match="ffn_hidden_size: 64 in the checkpoint, 128 in"):
        check_model(saved(plain), wide)
