"""GPT-NeoX's published configuration files, setting by setting.

`golden/neox_settings.json` holds what the files under configs/ of github.com/EleutherAI/gpt-neox
set, for each file the names that have no counterpart here, and the parameters of both models. What
many files share is written once: `shared` names it, `settings` overrides it, `without` takes away.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.convert.translate import nested
from tests.convert.settings import fates, refused, translated

GOLDEN = json.loads((Path(__file__).parent / "golden" / "neox_settings.json").read_text())
FILES = sorted(GOLDEN["files"])

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


def settings_of(name: str) -> dict[str, Any]:
    file = GOLDEN["files"][name]
    settings: dict[str, Any] = {}
    for shared in file["shared"]:
        settings |= GOLDEN["shared"][shared]
    for left_out in file.get("without", []):
        del settings[left_out]
    return settings | file["settings"]


def translation_of(name: str):
    return translated("neox", settings_of(name), size=GOLDEN["files"][name]["vocab_size"])


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_every_file_has_one_fate_and_it_is_the_reviewed_one(name):
    translation = translation_of(name)
    assert set(fates(translation)) == set(settings_of(name))
    assert sorted(refused(translation)) == GOLDEN["files"][name]["refused"]
    # A model that is another one in size is another one by name, too.
    assert translation.counts.equal or refused(translation)
    for each in translation.decisions:
        assert each.line.startswith(f"theirs:{each.setting.place.line}: {each.setting.name}: ")


@pytest.mark.parametrize("name", FILES)
def test_both_models_have_the_reviewed_numbers_of_parameters(name):
    counts = translation_of(name).counts
    assert {"theirs": counts.theirs, "ours": counts.ours} == GOLDEN["files"][name]["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_size_is_that_of_the_published_model(name):
    assert translation_of(name).counts.theirs == PUBLISHED[name]


@pytest.mark.parametrize("name", FILES)
def test_no_result_deletes_checkpoints_that_theirs_would_keep(name):
    kept = settings_of(name).get("keep_last_n_checkpoints")
    assert translation_of(name).options["checkpoint.keep_last"] == kept


def test_every_file_with_rotary_positions_is_another_model():
    rotary = [name for name in FILES if settings_of(name).get("pos_emb") == "rotary"]
    assert len(rotary) == 40
    for name in rotary:
        assert not translation_of(name).complete
        assert "pos_emb" in refused(translation_of(name))


def test_what_is_left_of_every_whole_file_is_a_configuration():
    whole = [name for name in FILES if {"num_layers", "train_iters"} <= set(settings_of(name))]
    assert len(whole) > 35
    for name in whole:
        if name not in ("125M-dmoe.yml", "autotuning_configs/tune_6-7B.json"):
            Config.model_validate(nested(translation_of(name).options))
