"""How many parameters a model has by another tool's rules, and by ours."""

from typing import NamedTuple

from pydantic import ValidationError

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.convert.ledger import Ledger
from megatron_gptx.convert.shapes import Shape
from megatron_gptx.costs.parameters import model_parameters


class Counts(NamedTuple):
    """Parameters of both models, or why there is no telling.

    Where the size of the vocabulary is not known, the tables of tokens are left out of both.
    """

    theirs: int | None
    ours: int | None
    with_vocabulary: bool
    problem: str

    @property
    def equal(self) -> bool:
        """Whether the two are the same, or at least not known to differ."""
        return self.theirs == self.ours or None in (self.theirs, self.ours)

    @property
    def line(self) -> str:
        """What a user is told of them."""
        if self.theirs is None or self.ours is None:
            return f"parameters: not compared: {self.problem}"
        beside = "" if self.with_vocabulary else " beside the tables of tokens"
        if self.equal:
            return f"parameters: {self.ours:,}{beside}, as there"
        return f"parameters: {self.ours:,}{beside}, but {self.theirs:,} there"


def compare(ledger: Ledger, shape: Shape | str) -> Counts:
    """Return the parameters of a translated model.

    Args:
        ledger: the options.
        shape: of the other tool's model, or why it has none that is known here.
    """
    known = isinstance(ledger.options.get("model.vocab_size"), int)
    rows = ledger.options["model.vocab_size"] if known else 1
    if isinstance(shape, str):
        return Counts(None, None, known, shape)
    model: dict[str, object] = {"vocab_size": rows}
    for path, value in ledger.options.items():
        section, _, name = path.partition(".")
        if section == "model" and "." not in name:
            model[name] = value
    try:
        config = ModelConfig.model_validate({**model, "vocab_size": rows})
    except ValidationError as error:
        missing = ", ".join(f"model.{each['loc'][0]}" for each in error.errors())
        return Counts(None, None, known, f"the result needs another {missing}")
    tables = 0 if known else (1 if config.tied_head else 2) * config.hidden_size
    ours = model_parameters(config) - tables
    return Counts(shape.parameters(rows if known else 0), ours, known, "")
