"""Settings for tests, as the readers would return them."""

from typing import Any

from megatron_gptx.config.yaml_reader import Place
from megatron_gptx.convert.settings import Setting
from megatron_gptx.convert.translate import Dialect, Translation, translate


def translated(dialect: Dialect, values: dict[str, Any], *, size: int | None = None) -> Translation:
    """Return the translation of settings given by name; the n-th stands on line n of `theirs`."""
    settings = {
        name: Setting(name, value, Place("theirs", number))
        for number, (name, value) in enumerate(values.items(), 1)
    }
    return translate(settings, dialect, vocab_size=size)


def fates(translation: Translation) -> dict[str, str]:
    """Return what became of each setting, by name."""
    return {each.setting.name: each.fate for each in translation.decisions}


def refused(translation: Translation) -> set[str]:
    """Return the names of the settings without a counterpart."""
    return {name for name, fate in fates(translation).items() if fate == "refused"}
