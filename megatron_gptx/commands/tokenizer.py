"""Learn a vocabulary from raw text, and write it as a tokenizer.json.

Inputs are those of `gptx preprocess`. The byte-level BPE is for every text, and the same
inputs give the same file; WordPiece loses white space; the library breaks ties of WordPiece and
Unigram at random.

    %(prog)s corpus.jsonl --vocab-size 22000 --output data/tokenizer.json
    %(prog)s corpus.jsonl --model wordpiece --vocab-size 22000 --output data/wp.json
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_gptx.commands.preprocess import describe_passed_over
from megatron_gptx.config.errors import UserError, describe
from megatron_gptx.corpus.open_input import InputFile
from megatron_gptx.corpus.preprocess import describe_inputs
from megatron_gptx.corpus.read_texts import Account, Reading, read_unit
from megatron_gptx.corpus.sources import divide, find_files
from megatron_gptx.dataset.manifest import read_manifest, write_manifest
from megatron_gptx.files.checksums import file_sha256
from megatron_gptx.files.write import write_synced
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.train import train_byte_level_bpe, train_unigram, train_wordpiece


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        passed_over: list[str] = []
        files = find_files(
            args.input,
            globs=args.glob or (),
            lists=args.list_file,
            wanted=args.format,
            passed_over=passed_over,
        )
        if line := describe_passed_over(passed_over):
            print(line, file=sys.stderr)
        made_from = {
            "inputs": describe_inputs(files),
            "options": {
                "model": args.model,
                "vocab_size": args.vocab_size,
                "min_frequency": args.min_frequency,
                "json_key": args.json_key,
            },
        }
        return _train(args, files, made_from)
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace, files: list[InputFile], made_from: dict[str, Any]) -> int:
    output: Path = args.output
    # A tokenizer.json has no room for where it came from.
    manifest_path = output.with_name(f"{output.stem}.manifest.json")
    if output.exists() and not args.overwrite:
        manifest = read_manifest(manifest_path) or {}
        if manifest == {**made_from, "sha256": file_sha256(output)}:
            print(f"{output}: up to date")
            return 0
        raise UserError(
            f"{output}: a tokenizer made from other inputs or options is there; choose another "
            "--output or replace it with --overwrite"
        )
    account = Account()
    texts = _texts(files, account, args.json_key)
    size, frequency = args.vocab_size, args.min_frequency
    if args.model == "bpe":
        content = train_byte_level_bpe(texts, vocab_size=size, min_frequency=frequency)
    elif args.model == "wordpiece":
        content = train_wordpiece(texts, vocab_size=size, min_frequency=frequency)
    else:
        content = train_unigram(texts, vocab_size=size)
    if not account.text_bytes:
        raise UserError(f"no text in {len(files)} file(s): {account.reasons.total()} rejected")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_synced(output, content)
    write_manifest(manifest_path, {**made_from, "sha256": file_sha256(output)})
    for entry in account.rejected:
        print(f"skipped {entry.path}: {entry.reason}", file=sys.stderr)
    vocab_size = load_tokenizer(output).vocab_size
    print(f"{output}: {vocab_size:,} ids from {account.text_bytes / 1e6:.1f} MB of text")
    if vocab_size < args.vocab_size:
        print(f"the text offers no more than these; asked for {args.vocab_size:,}", file=sys.stderr)
    return 0


def _texts(files: list[InputFile], account: Account, json_key: str) -> Iterator[str]:
    for unit in divide(files):
        yield from read_unit(unit, account, Reading(json_key))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="*", help="files and folders")
    parser.add_argument(
        "--list-file",
        action="append",
        default=[],
        metavar="FILE",
        help="file with one input path per line, relative to the current folder",
    )
    parser.add_argument(
        "--glob",
        action="append",
        help="which files of a folder to take; repeatable (default: as in preprocess_data.py)",
    )
    parser.add_argument(
        "--format", choices=("auto", "jsonl", "json", "text", "parquet"), default="auto",
        help="how all files are read (default: auto, which looks into them)",
    )  # fmt: skip
    parser.add_argument("--json-key", default="text", help="key of the text (default: text)")
    parser.add_argument(
        "--model",
        choices=("bpe", "wordpiece", "unigram"),
        default="bpe",
        help="what to learn (default: bpe, on bytes)",
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="ids at most")
    parser.add_argument(
        "--min-frequency",
        type=int,
        default=2,
        help="a pair's occurrences to be merged (default: 2; not for unigram)",
    )
    parser.add_argument("--output", type=Path, required=True, help="tokenizer.json to write")
    parser.add_argument("--overwrite", action="store_true", help="replace another tokenizer")
    return parser
