"""Translate a configuration of GPT-NeoX (YAML) or Megatron-LM (arguments in a script) into ours.

%(prog)s 20B.yml local_setup.yml --output configs/20B.yml
%(prog)s pretrain_gpt.sh --vocab-size 50257 --output configs/gpt.yml

Every setting is translated, or listed with its file and line: first those without a counterpart
here, which leave another model, then those on which nothing depends. Both lists also stand at the
head of the result. The numbers of parameters are compared.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_gptx.config.errors import ConfigError, UserError, why
from megatron_gptx.config.load import load
from megatron_gptx.config.yaml_writer import dump_values
from megatron_gptx.convert.settings import read_neox
from megatron_gptx.convert.shell import read_megatron
from megatron_gptx.convert.translate import Dialect, Translation, nested, translate
from megatron_gptx.files.write import write_synced
from megatron_gptx.tokenizer.build import load_tokenizer

YAML = {".yml", ".yaml", ".json"}


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status: 1 where the result is another model, or needs more."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="later files override earlier ones")
    parser.add_argument("--output", type=Path, help="where to write; default: print it")
    parser.add_argument(
        "--from", dest="dialect", choices=("neox", "megatron"), help="default: by the file's ending"
    )
    parser.add_argument("--vocab-size", type=int, help="of the tokenizer; default: ask its file")
    options = parser.parse_args(argv)
    try:
        return convert(options)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def convert(options: argparse.Namespace) -> int:
    """Translate, write and check."""
    dialect = options.dialect or dialect_of(options.files)
    settings = (read_neox if dialect == "neox" else read_megatron)(options.files)
    if not settings:
        raise UserError(f"{options.files[0]}: no settings found; say --from neox or megatron")
    size = options.vocab_size
    translation = translate(settings, dialect, vocab_size=size)
    tokenizer = translation.options.get("data.tokenizer")
    if size is None and isinstance(tokenizer, str) and Path(tokenizer.split(",")[0]).is_file():
        size = load_tokenizer(tokenizer).vocab_size
        translation = translate(settings, dialect, vocab_size=size)
    text = render(translation, options.files)
    if not options.output:
        print(text, end="")
    elif options.output.exists():
        raise UserError(f"--output {options.output} exists; name another file, or remove it")
    else:
        try:
            write_synced(options.output, text)
        except OSError as error:
            message = f"--output {options.output} cannot be written: {why(error)}"
            raise UserError(message) from None
    report(translation)
    missing = check(text, options.output or "the result")
    if "model.vocab_size" not in translation.options:
        print("  --vocab-size gives model.vocab_size: no tokenizer is here to ask", file=sys.stderr)
    for line in translation.not_needed:
        print(f"not needed: {line}", file=sys.stderr)
    return missing if translation.complete else 1


def dialect_of(files: list[Path]) -> Dialect:
    """Return the tool that files are written for, by their endings."""
    kinds = {file.suffix in YAML for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{', '.join(map(str, files))}: YAML is GPT-NeoX's, other files are Megatron-LM's; "
            "translate one kind at a time, or say --from neox or megatron"
        )
    return "neox" if kinds.pop() else "megatron"


def check(text: str, name: str | Path) -> int:
    """Say what a translated configuration needs before it can run; return the exit status."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "translated.yml")
        path.write_text(text, encoding="utf-8")
        try:
            load([path])
        except ConfigError as error:
            print(f"before it can run:\n{error}".replace(str(path), str(name)), file=sys.stderr)
            return 1
    return 0


def render(translation: Translation, files: list[Path]) -> str:
    """Return the result with what was left out at its head."""
    head = [f"Translated from {', '.join(map(str, files))}.", "", translation.counts.line]
    for title, lines in (
        ("No counterpart here, so that this is another model or run:", translation.refused),
        ("Not needed here:", translation.not_needed),
    ):
        if lines:
            head += ["", title, *(f"  {line}" for line in lines)]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    return f"{comment}{dump_values(nested(translation.options))}"


def report(translation: Translation) -> None:
    """Say what makes the result another model."""
    if translation.refused:
        title = "another model or run, since these settings have no counterpart here:"
        print(title, file=sys.stderr)
    for line in translation.refused:
        print(f"  {line}", file=sys.stderr)
    print(translation.counts.line, file=sys.stderr)
