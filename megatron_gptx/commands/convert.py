"""Translate a configuration of GPT-NeoX (YAML) or Megatron-LM (arguments in a script) into ours.

%(prog)s 20B.yml local_setup.yml --output configs/20B.yml
%(prog)s pretrain_gpt.sh --vocab-size 50257 --output configs/gpt.yml

What has no counterpart here is listed with its file and line, on the screen and at the head of the
result: every setting is translated, named as not needed, or named as unknown.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_gptx.config.errors import ConfigError, UserError, why
from megatron_gptx.config.foreign import read_megatron, read_neox
from megatron_gptx.config.load import load
from megatron_gptx.config.translate import Translation, nested, translate
from megatron_gptx.config.yaml_writer import dump_values
from megatron_gptx.data.files import write_aside
from megatron_gptx.tokenizer.build import load_tokenizer

YAML = {".yml", ".yaml", ".json"}


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status: 1 where the result needs more before it can run."""
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
    dialect = options.dialect or ("neox" if options.files[0].suffix in YAML else "megatron")
    settings = (read_neox if dialect == "neox" else read_megatron)(options.files)
    if not settings:
        raise UserError(f"{options.files[0]}: no settings found; say --from neox or megatron")
    translation = translate(settings, vocab_size=options.vocab_size)
    tokenizer = translation.options.get("data.tokenizer")
    if options.vocab_size is None and tokenizer and Path(tokenizer).is_file():
        translation = translate(settings, vocab_size=load_tokenizer(tokenizer).vocab_size)
    text = render(translation, options.files)
    if not options.output:
        print(text, end="")
    elif options.output.exists():
        raise UserError(f"--output {options.output} exists; name another file, or remove it")
    else:
        try:
            write_aside(options.output, text)
        except OSError as error:
            message = f"--output {options.output} cannot be written: {why(error)}"
            raise UserError(message) from None
    report(translation)
    return check(text, options.output or "the result")


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
    head = [f"Translated from {', '.join(map(str, files))}."]
    for title, lines in (
        ("Not translated:", translation.unknown),
        ("Not needed here:", translation.not_needed),
    ):
        if lines:
            head += ["", title, *(f"  {line}" for line in lines)]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    return f"{comment}{dump_values(nested(translation.options))}"


def report(translation: Translation) -> None:
    """Say what was left out."""
    for line in translation.unknown:
        print(f"not translated: {line}", file=sys.stderr)
    for line in translation.not_needed:
        print(f"not needed: {line}", file=sys.stderr)
