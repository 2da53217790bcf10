"""How many rows a table of tokens has, and which file tells what they spell."""

from pathlib import Path

from megatron_gptx.convert.ledger import Ledger

UNIT = 128  # what both tools round the vocabulary up to
_FILES = (".json", ".model", ".tiktoken")
_TAKES = "data.tokenizer takes one file of a known kind, or VOCABULARY,MERGES"


def set_vocabulary(ledger: Ledger, size: int | None, ranks: int) -> None:
    """Decide the vocabulary, which is rounded up to the same number of rows on all ranks.

    Args:
        ledger: the settings.
        size: of the tokenizer; None leaves the option to the user.
        ranks: that the table was spread over.
    """
    unit = ledger.value("make_vocab_size_divisible_by", UNIT) * ranks
    if ledger.open("padded_vocab_size"):
        ledger.translate("padded_vocab_size", "model.vocab_size", ledger.value("padded_vocab_size"))
    elif size is not None:
        ledger.options["model.vocab_size"] = -(-size // unit) * unit
    known = "model.vocab_size" in ledger.options
    for name in ("vocab_size", "make_vocab_size_divisible_by"):
        if not ledger.open(name):
            continue
        if known and "padded_vocab_size" not in ledger.settings:
            ledger.used(name, "model.vocab_size")
        elif known:
            ledger.drop(name, "padded_vocab_size decides")
        else:
            ledger.drop(name, "rounds the tokenizer's size up: give it as --vocab-size")


def set_tokenizer(ledger: Ledger) -> None:
    """Decide the tokenizer's files; the datasets hold its ids, so that training needs none."""
    merges = ledger.value("merge_file")
    for name in ("tokenizer_model", "vocab_file"):
        if not ledger.open(name):
            continue
        file = ledger.value(name)
        if "data.tokenizer" in ledger.options or not _names_a_tokenizer(file):
            ledger.drop(name, _TAKES)
        elif name == "vocab_file" and isinstance(merges, str) and "$" not in merges:
            ledger.translate(name, "data.tokenizer", f"{file},{merges}")
            ledger.used("merge_file", "data.tokenizer")
        else:
            ledger.translate(name, "data.tokenizer", file)
    if ledger.open("merge_file"):
        ledger.drop("merge_file", _TAKES)


def _names_a_tokenizer(file: object) -> bool:
    return isinstance(file, str) and "$" not in file and Path(file).suffix in _FILES
