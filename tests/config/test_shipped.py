"""Configurations that come with the package are found by name, wherever a command is typed."""

from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load, load_with_sources
from megatron_gptx.config.shipped import find_config, shipped_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["configs/1B.yml", "1B.yml", "1B", "configs/1B"])
def test_a_name_stands_for_the_shipped_configuration(name):
    assert find_config(Path(name)) == ROOT / "configs" / "1B.yml"


@pytest.mark.parametrize("name", ["gpt3-1.3B", "overlays/cpu", "configs/overlays/cpu.yml"])
def test_dots_and_folders_are_part_of_a_name(name):
    assert find_config(Path(name)).is_file()


def test_a_file_here_wins_over_the_shipped_one(elsewhere):
    (elsewhere / "1B.yml").write_text("")
    assert find_config(Path("1B.yml")) == Path("1B.yml")


@pytest.mark.parametrize("name", ["nowhere.yml", "", "configs", "/1B.yml", "x" * 300, "a\0b"])
def test_a_name_that_stands_for_nothing_stays_as_it_is(name):
    assert find_config(Path(name)) == Path(name)


def test_shipped_files_merge_with_files_here_and_sources_say_which(elsewhere):
    (elsewhere / "mine.yml").write_text("training:\n  steps: 7000\n")
    loaded = load_with_sources([Path("1B"), Path("mine.yml")])
    assert loaded.config.training.steps == 7000
    assert loaded.config.model == load([ROOT / "configs" / "1B.yml"]).model
    assert loaded.sources["training.steps"] == "mine.yml:2"
    assert loaded.sources["model.num_layers"].startswith(f"{ROOT}/configs/1B.yml:")


def test_a_missing_file_is_named_as_it_was_typed():
    with pytest.raises(ConfigError, match=r"nowhere\.yml"):
        load([Path("nowhere.yml")])


def test_a_misspelt_name_of_a_shipped_configuration_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match="did you mean quickstart, which comes with the package"):
        load([Path("quikstart")])


def test_a_checkout_has_its_folders_beside_the_package():
    assert [shipped_folder(name) for name in ("csrc", "configs")] == [
        ROOT / "csrc",
        ROOT / "configs",
    ]
