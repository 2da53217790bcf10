"""Datasets with weights, as other tools write them."""

from collections.abc import Sequence
from typing import Any

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.convert.ledger import Ledger, is_number
from megatron_gptx.convert.settings import Setting


def translate_lists(ledger: Ledger, part: str) -> None:
    """Translate `train_data_paths` beside `train_data_weights`, and their labels.

    Raises:
        ConfigError: the lists have unequal lengths.
    """
    paths_name, weights_name = f"{part}_data_paths", f"{part}_data_weights"
    labels_name = f"{part}_label_data_paths"
    paths = _listed(ledger.value(paths_name))
    for name in (weights_name, labels_name):
        if not paths and ledger.open(name):
            ledger.drop(name, f"has no meaning without {paths_name}")
    if not paths:
        return
    weights = [1.0] * len(paths)
    for name in (weights_name, labels_name):
        if ledger.open(name):
            found = _listed(ledger.value(name))
            _same_length(ledger.settings[paths_name], ledger.settings[name], paths, found)
            weights = found if name == weights_name else weights
    ledger.translate(paths_name, f"data.{part}", _blend(paths, weights))
    if ledger.open(weights_name):
        ledger.used(weights_name, f"data.{part}")
    if ledger.open(labels_name):
        labels = dict(zip(paths, _listed(ledger.value(labels_name)), strict=True))
        ledger.options["data.labels"] = {**ledger.options.get("data.labels", {}), **labels}
        ledger.used(labels_name, "data.labels")


def translate_words(ledger: Ledger, name: str, path: str) -> None:
    """Translate `--data-path`: a prefix, prefixes, or weights and prefixes in turn.

    Raises:
        ConfigError: a weight has no prefix, or a prefix no weight.
    """
    setting = ledger.settings[name]
    words = _listed(setting.value)
    if len(words) < 2 or not is_number(words[0]):
        ledger.translate(name, path, _blend(words, [1.0] * len(words)))
        return
    weights, prefixes = words[::2], words[1::2]
    if len(words) % 2 or not all(map(is_number, weights)) or any(map(is_number, prefixes)):
        raise ConfigError(
            f"{setting.where}: {name}: expected a weight and a prefix in turn, such as "
            f"`0.3 data/a 0.7 data/b`, got {' '.join(map(str, words))}"
        )
    ledger.translate(name, path, _blend(prefixes, weights))


def split_shares(value: Any) -> str:
    """Return `969, 30, 1`, or its parts, as our option takes it."""
    shares = value if isinstance(value, list) else str(value).split(",")
    return ",".join(str(share).strip(" ,") for share in shares)


def _blend(prefixes: Sequence[Any], weights: Sequence[Any]) -> Any:
    """Return the prefix, or a mapping of prefixes to weights; those of one prefix add up."""
    if len(prefixes) == 1:
        return prefixes[0]
    blend: dict[Any, Any] = {}
    for prefix, weight in zip(prefixes, weights, strict=True):
        # 0.1 + 0.2 is not 0.3: a weight of more digits than were written would only puzzle.
        blend[prefix] = round(blend[prefix] + weight, 12) if prefix in blend else weight
    return blend


def _same_length(first: Setting, second: Setting, left: list[Any], right: list[Any]) -> None:
    if len(left) != len(right):
        raise ConfigError(
            f"{second.where}: {second.name} has {len(right)} entries, but {first.name} at "
            f"{first.where} has {len(left)}: give each dataset its own"
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
