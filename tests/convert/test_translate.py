"""No setting is lost in silence, whatever its name and value."""

import pytest

from megatron_gptx.config.options import walk_options
from megatron_gptx.config.yaml_reader import Place
from megatron_gptx.convert import megatron_names, neox_names
from megatron_gptx.convert.counts import Counts
from megatron_gptx.convert.ledger import Ledger
from megatron_gptx.convert.settings import Setting
from megatron_gptx.convert.translate import Translation
from tests.convert.settings import fates, translated

TABLES = {"neox": neox_names, "megatron": megatron_names}


def names_of(tool):
    """Yield every name that the tables of a tool know, patterns filled in."""
    tables = TABLES[tool]
    known = [tables.SAME, tables.WORDS, tables.ONLY, tables.PART_OF, tables.NOT_NEEDED]
    names = {name for table in known for name in table} | {*tables.NUMBERS, *tables.ABOVE_ZERO}
    more = {
        "neox": (
            "train_data_paths",
            "attention_config",
            "split",
            "load",
            "fp16.type",
            "activation",
        ),
        "megatron": ("data_path", "split", "load", "fim_data", "group_query_attention", "swiglu"),
    }
    return sorted(name.replace("*", "x") for name in {*names, *more[tool]})


CASES = [(tool, name) for tool in TABLES for name in names_of(tool)]


@pytest.mark.parametrize(("tool", "name"), CASES)
def test_every_setting_alone_has_exactly_one_fate(tool, name):
    for value in ("other words", 3, 0, True, False, None, [], [1, "a"], "$1"):
        translation = translated(tool, {name: value})
        assert list(fates(translation)) == [name]
        listed = [*translation.refused, *translation.not_needed]
        assert bool(listed) == (fates(translation)[name] != "translated")
        for line in listed:
            assert line.startswith(f"theirs:1: {name}: ")


@pytest.mark.parametrize("tool", TABLES)
def test_every_option_that_a_table_names_is_one_of_ours(tool):
    tables = TABLES[tool]
    paths = [*tables.SAME.values(), *tables.DEFAULTS, *(path for path, _ in tables.WORDS.values())]
    ours = {".".join(option.path) for option in walk_options()}
    assert {path for path in paths if not path.startswith("deepspeed.")} <= ours


def test_a_second_decision_is_a_mistake_of_ours():
    ledger = Ledger({"a": Setting("a", 1, Place("x", 1))})
    ledger.drop("a", "once")
    with pytest.raises(AssertionError, match="is decided"):
        ledger.refuse("a", "twice")


@pytest.mark.parametrize(
    ("theirs", "ours", "complete"), [(7, 7, True), (7, 8, False), (None, 8, True)]
)
def test_a_model_of_another_size_is_another_one_though_no_setting_was_refused(
    theirs, ours, complete
):
    counts = Counts(theirs, ours, with_vocabulary=True, problem="")
    assert Translation({}, [], counts).complete == complete
