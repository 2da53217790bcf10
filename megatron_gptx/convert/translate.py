"""Settings of GPT-NeoX and Megatron-LM as options of ours."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from megatron_gptx.config.options import walk_options
from megatron_gptx.convert.counts import Counts, compare
from megatron_gptx.convert.ledger import Decision, Ledger
from megatron_gptx.convert.megatron import decide_megatron, megatron_shape
from megatron_gptx.convert.neox import decide_neox, neox_shape
from megatron_gptx.convert.settings import Setting
from megatron_gptx.convert.shapes import Shape

Dialect = Literal["neox", "megatron"]
_RULES: dict[Dialect, Callable[[Ledger, int | None], None]] = {
    "neox": decide_neox,
    "megatron": decide_megatron,
}
_SHAPES: dict[Dialect, Callable[[Ledger], Shape | str]] = {
    "neox": neox_shape,
    "megatron": megatron_shape,
}


class Translation(NamedTuple):
    """Our options by path, what became of each setting, and the size of both models."""

    options: dict[str, Any]
    decisions: list[Decision]
    counts: Counts

    @property
    def refused(self) -> list[str]:
        """A line for each setting without a counterpart: without it the model is another one."""
        return [each.line for each in self.decisions if each.fate == "refused"]

    @property
    def not_needed(self) -> list[str]:
        """A line for each setting on which nothing depends that is learned."""
        return [each.line for each in self.decisions if each.fate == "not needed"]

    @property
    def complete(self) -> bool:
        """Whether the result trains the model that was meant."""
        return not self.refused and self.counts.equal


def translate(
    settings: Mapping[str, Setting], dialect: Dialect, *, vocab_size: int | None = None
) -> Translation:
    """Return our options for settings of another tool.

    Its defaults are written out where ours are others. Every setting is decided exactly once.

    Args:
        settings: by name.
        dialect: the tool; equal names mean different things to different tools.
        vocab_size: of the tokenizer, which they ask when they start; null leaves it out.
    """
    ledger = Ledger(settings)
    _RULES[dialect](ledger, vocab_size)
    assert not ledger.rest(), ledger.rest()
    order = {".".join(option.path): number for number, option in enumerate(walk_options())}
    options = dict(sorted(ledger.options.items(), key=lambda item: order.get(item[0], len(order))))
    decisions = sorted(ledger.decisions.values(), key=lambda each: each.setting.place)
    return Translation(options, decisions, compare(ledger, _SHAPES[dialect](ledger)))


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by path as nested mappings, in the order of the schema's sections."""
    tree: dict[str, Any] = {}
    for path, value in options.items():
        *outer, name = path.split(".")
        place = tree
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = value
    return tree
