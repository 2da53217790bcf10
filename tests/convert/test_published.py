"""Published configurations of GPT-NeoX and Megatron-LM, setting by setting.

`golden/neox_settings.json` holds what the files under configs/ of github.com/EleutherAI/gpt-neox
set, `golden/megatron_settings.json` what scripts under examples/ of github.com/NVIDIA/Megatron-LM
hand over; paths of data are made up. Beside each stand the names that have no counterpart here, and
the parameters of both models. What many files share is written once: `shared` names it, `settings`
overrides it, `without` takes away.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load
from megatron_gptx.config.yaml_writer import dump_values
from megatron_gptx.convert.translate import Dialect, Translation, nested
from tests.convert.settings import fates, refused, translated

FOLDER = Path(__file__).parent / "golden"
GOLDEN: dict[Dialect, Any] = {
    "neox": json.loads((FOLDER / "neox_settings.json").read_text()),
    "megatron": json.loads((FOLDER / "megatron_settings.json").read_text()),
}
FILES = [(tool, name) for tool, golden in GOLDEN.items() for name in sorted(golden["files"])]
NEOX = [name for tool, name in FILES if tool == "neox"]

# Sizes that others published of models trained with these files.
PUBLISHED = {
    "20B.yml": 20_554_567_680,
    "pythia/14M.yml": 14_067_712,
    "pythia/31M.yml": 30_494_720,
    "pythia/70M.yml": 70_426_624,
    "pythia/160M.yml": 162_322_944,
    "pythia/410M.yml": 405_334_016,
    "pythia/1B.yml": 1_011_781_632,
    "pythia/1-4B.yml": 1_414_647_808,
    "pythia/2-8B.yml": 2_775_208_960,
    "pythia/6-9B.yml": 6_857_302_016,
    "llama/7B.yml": 6_738_415_616,
    "llama/13B.yml": 13_015_864_320,
    "llama/65B.yml": 65_285_660_672,
    "mistral/7B.yml": 7_241_732_096,
}


def settings_of(tool: Dialect, name: str) -> dict[str, Any]:
    golden = GOLDEN[tool]
    file = golden["files"][name]
    settings: dict[str, Any] = {}
    for shared in file["shared"]:
        settings |= golden["shared"][shared]
    for left_out in file.get("without", []):
        del settings[left_out]
    return settings | file["settings"]


def translation_of(tool: Dialect, name: str) -> Translation:
    size = GOLDEN[tool]["files"][name]["vocab_size"]
    return translated(tool, settings_of(tool, name), size=size)


@pytest.mark.parametrize(("tool", "name"), FILES)
def test_every_setting_of_every_file_has_one_fate_and_it_is_the_reviewed_one(tool, name):
    translation = translation_of(tool, name)
    assert set(fates(translation)) == set(settings_of(tool, name))
    assert sorted(refused(translation)) == GOLDEN[tool]["files"][name]["refused"]
    # A model that is another one in size is another one by name, too.
    assert translation.counts.equal or refused(translation)
    for each in translation.decisions:
        assert each.line.startswith(f"theirs:{each.setting.place.line}: {each.setting.name}: ")


@pytest.mark.parametrize(("tool", "name"), FILES)
def test_both_models_have_the_reviewed_numbers_of_parameters(tool, name):
    counts = translation_of(tool, name).counts
    expected = GOLDEN[tool]["files"][name]["parameters"]
    assert {"theirs": counts.theirs, "ours": counts.ours} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_size_is_that_of_the_published_model(name):
    assert translation_of("neox", name).counts.theirs == PUBLISHED[name]


@pytest.mark.parametrize(("tool", "name"), FILES)
def test_no_result_deletes_checkpoints_that_theirs_would_keep(tool, name):
    kept = settings_of(tool, name).get("keep_last_n_checkpoints")
    assert translation_of(tool, name).options["checkpoint.keep_last"] == kept


def test_every_file_with_rotary_positions_is_another_model():
    rotary = [name for name in NEOX if settings_of("neox", name).get("pos_emb") == "rotary"]
    assert len(rotary) == 40
    for name in rotary:
        assert not translation_of("neox", name).complete
        assert "pos_emb" in refused(translation_of("neox", name))


def test_what_is_left_of_every_whole_file_loads(tmp_path):
    whole = [
        name for name in NEOX if {"num_layers", "train_iters"} <= set(settings_of("neox", name))
    ]
    assert len(whole) > 35
    failed = {}
    for name in whole:
        path = tmp_path / "translated.yml"
        path.write_text(dump_values(nested(translation_of("neox", name).options)))
        try:
            load([path])
        except ConfigError as error:
            failed[name] = str(error)
    # Its warm-up is longer than its run.
    assert set(failed) == {"autotuning_configs/tune_6-7B.json"}
    assert "warmup_steps 3200 leaves none of the 100" in failed["autotuning_configs/tune_6-7B.json"]
