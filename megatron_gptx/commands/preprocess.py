"""Turn raw text into a token dataset: PREFIX.bin and PREFIX.idx, with PREFIX.d/manifest.json.

A file of JSON objects, one per line, holds one document in each, NAME.parquet one per row; every
other file is one document. Files are looked into, and may be compressed (.gz, .zst, .xz, .bz2). A
folder stands for the files below it that match --glob. URLs, wildcards, datasets:NAME of the
`datasets` library, and - for lines from standard input are inputs as well.

    %(prog)s corpus.jsonl --tokenizer tokenizer.json --output-prefix data/corpus \\
        --append-eod --workers 8
    %(prog)s src/ --glob '*.py' --tokenizer tokenizer.json --output-prefix data/src

Stopped, by whatever, it goes on where it was when the same command is given again.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_gptx.config.errors import UserError, describe
from megatron_gptx.corpus.formats import ENDINGS, recognise
from megatron_gptx.corpus.open_input import InputFile
from megatron_gptx.corpus.sources import find_files
from megatron_gptx.corpus.standard_input import STDIN, spooled
from megatron_gptx.corpus.worker_pool import import_ahead

if TYPE_CHECKING:
    from megatron_gptx.corpus.encode import Options
    from megatron_gptx.corpus.preprocess import Outcome

_SHOWN = 10
_KINDS = {
    "files": "whole text",
    "lines": "lines of JSON",
    "stream": "lines of JSON",
    "json": "JSON value",
    "parquet": "parquet",
    "dataset": "dataset",
}
# Options of GPT-NeoX and Megatron-LM that decide nothing here.
_NO_EFFECT = (
    "--tokenizer-type",
    "--dataset-impl",
    "--log-interval",
    "--partitions",
    "--num-docs",
    "--vocab-size",
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    for name in _NO_EFFECT:
        if getattr(args, name[2:].replace("-", "_")) is not None:
            print(f"{name} has no effect here", file=sys.stderr)
    prefixes: dict[str, Path] = {}
    waiting: list[str] = []
    try:
        prefixes = _prefixes(args)
        if args.workers > 1:
            import_ahead("megatron_gptx.corpus.encode")
        with ExitStack() as stack:
            files = _inputs(args, stack)
            waiting += prefixes
            while waiting:
                key = waiting.pop(0)
                _make_dataset(args, files, key, prefixes[key])
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    else:
        return 0
    for prefix in (name for each in prefixes.values() for name in (each, _labels_of(each))):
        if Path(f"{prefix}.d", "progress.json").exists():
            print(f"{prefix}.d keeps what is done: the same command goes on", file=sys.stderr)
    for key in waiting:
        print(f"not begun: {prefixes[key]}, of the key {key!r}", file=sys.stderr)
    return status


def _prefixes(args: argparse.Namespace) -> dict[str, Path]:
    """Return the prefix of each key's dataset."""
    usual = "text" if args.chat_template is None else "messages"
    keys = list(dict.fromkeys(args.json_keys or [usual]))
    if len(keys) == 1:
        return {keys[0]: args.output_prefix}
    if apart := [key for key in keys if "/" in key]:
        raise UserError(
            f"--json-key {apart[0]}: would be part of a file's name, which has no slash; give this "
            "key by itself, with an --output-prefix of its own"
        )
    return {key: Path(f"{args.output_prefix}_{key}") for key in keys}


def _inputs(args: argparse.Namespace, stack: ExitStack) -> list[InputFile]:
    inputs = args.input + [part for given in args.inputs for part in given.split(",")]
    piped = STDIN in inputs
    inputs = [given for given in inputs if given != STDIN]
    files: list[InputFile] = []
    passed_over: list[str] = []
    if inputs or args.list_file or not piped:
        files = find_files(
            inputs,
            globs=args.glob or (),
            lists=args.list_file,
            wanted=args.format,
            passed_over=passed_over,
        )
    if piped:
        file = stack.enter_context(spooled(Path(f"{args.output_prefix}.d")))
        files.append(file._replace(kind=recognise(file.path, args.format)))
    if line := describe_passed_over(passed_over):
        print(line, file=sys.stderr)
    return files


def describe_passed_over(paths: list[str]) -> str:
    """Return a line that counts the files of folders that are not taken, and names the first."""
    if not paths:
        return ""
    names = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    return f"passed over  {len(paths):,} files: {names}; --glob or their names take them"


def _make_dataset(args: argparse.Namespace, files: list[InputFile], key: str, prefix: Path) -> None:
    # Not before the workers' imports have begun: they take a quarter of a second, beside these.
    from megatron_gptx.corpus.chat import unknown_markers
    from megatron_gptx.corpus.encode import Options
    from megatron_gptx.tokenizer.build import load_tokenizer

    chat = _chat(args)
    options = Options(
        json_key=key,
        append_eod=args.append_eod,
        ftfy=args.ftfy,
        special_tokens=args.special_tokens_in_text,
        longest_document=args.longest_document,
        stop_on_error=args.on_error == "stop",
        eod_token=args.eod_token,
        chat=chat,
    )
    _make(args, files, prefix, options)
    if chat is not None:
        known = load_tokenizer(args.tokenizer, merges=args.merge_file).special_tokens
        if unknown := unknown_markers(chat, known):
            names = ", ".join(unknown)
            print(f"not in the vocabulary, so text like any other: {names}", file=sys.stderr)
        labels = _labels_of(prefix)
        _make(args, files, labels, replace(options, labels=True))
        print(f"answers      data.labels: {{{prefix}: {labels}}} trains on them only")


def _labels_of(prefix: Path) -> Path:
    """Return the prefix of the dataset that says what is learned of a chat."""
    return Path(f"{prefix}_labels")


def _chat(args: argparse.Namespace) -> dict[str, str] | None:
    from megatron_gptx.corpus.chat import read_template

    if args.chat_template is None:
        return None
    if args.ftfy or args.special_tokens_in_text == "keep":
        given = "--ftfy" if args.ftfy else "--special-tokens-in-text keep"
        raise UserError(f"{given}: not together with --chat-template")
    return read_template(args.chat_template)


def _make(
    args: argparse.Namespace, files: list[InputFile], prefix: Path, options: "Options"
) -> None:
    from megatron_gptx.corpus.encode import Vocabulary
    from megatron_gptx.corpus.preprocess import preprocess

    started_at = time.perf_counter()
    outcome = preprocess(
        files,
        prefix,
        Vocabulary(args.tokenizer, args.merge_file),
        options,
        workers=args.workers,
        overwrite=args.overwrite,
        engine=args.engine,
    )
    if outcome is None:
        print(f"{prefix}: up to date")
    else:
        _print_summary(prefix, files, outcome, time.perf_counter() - started_at)


def _print_summary(
    prefix: Path, files: list[InputFile], outcome: "Outcome", seconds: float
) -> None:
    summary = outcome.summary
    num_rejected = sum(summary.rejected.values())
    for example in summary.rejected_examples[:_SHOWN]:
        print(f"rejected {example}", file=sys.stderr)
    if num_rejected > _SHOWN:
        print(f"and more: {prefix}.d/manifest.json names up to 100", file=sys.stderr)
    print(f"dataset      {prefix}")
    print(f"documents    {summary.num_documents:,} from {len(files):,} files")
    kinds = Counter(_KINDS[file.kind] for file in files if file.kind)
    print(f"read as      {', '.join(f'{kind}: {count:,}' for kind, count in kinds.items())}")
    ratio = summary.tokens_per_byte
    print(f"tokens       {summary.num_tokens:,} ({ratio:.3f} tokens per byte)")
    print(f"empty        {summary.empty:,} skipped")
    print(f"repaired     {summary.repaired:,} with characters that are not Unicode")
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary.rejected.items())
    print(f"rejected     {num_rejected:,}{f' ({reasons})' if reasons else ''}")
    print(f"engine       {outcome.engine}{f' ({outcome.reason})' if outcome.reason else ''}")
    if outcome.resumed_parts:
        print(f"resumed      after {outcome.resumed_parts:,} of {outcome.num_parts:,} parts")
        print(f"time         {seconds:.1f} s for the rest")
    else:
        num_bytes = sum(file.num_bytes for file in files)
        speed = f"{num_bytes / 1e6 / seconds:.1f} MB/s"
        print(
            f"time         {seconds:.1f} s, {speed}, {summary.num_tokens / seconds:,.0f} tokens/s"
        )


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="*", help="files, folders, wildcards, URLs, or -")
    parser.add_argument(
        "--input", action="append", default=[], dest="inputs", metavar="FILE[,FILE]",
        help="the same, as GPT-NeoX and Megatron-LM have it",
    )  # fmt: skip
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
        help="which files of a folder to take; repeatable (default: names that end in "
        f"{' '.join(ENDINGS)}, also compressed, and no whole text beside lines or rows)",
    )
    parser.add_argument(
        "--format", choices=("auto", "jsonl", "json", "text", "parquet"), default="auto",
        help="how all files are read: lines of JSON, one JSON value, one text, or parquet "
        "(default: auto, which looks into them)",
    )  # fmt: skip
    keys = parser.add_argument_group("which text")
    keys.add_argument(
        "--json-key", action="append", dest="json_keys", metavar="KEY",
        help="key, or column, of the text (default: text); meta.text is text inside meta; each of "
        "several makes a dataset of its own, PREFIX_KEY",
    )  # fmt: skip
    keys.add_argument(
        "--json-keys", "--jsonl-keys", action="extend", dest="json_keys", nargs="+", metavar="KEY",
        help="several of them, as GPT-NeoX and Megatron-LM have it",
    )  # fmt: skip
    keys.add_argument(
        "--chat-template", metavar="FILE",
        help="texts are lists of messages (default --json-key: messages), written out by this "
        "template of Jinja, tokenizer_config.json or folder; PREFIX_labels says what is learned: "
        "the answers",
    )  # fmt: skip
    keys.add_argument(
        "--ftfy", nargs="?", const="full", choices=("full", "mojibake"),
        help="repair text with ftfy: in full, which also rewrites quotes and entities and so "
        "changes code, or only what was decoded wrongly (without a value: full)",
    )  # fmt: skip
    keys.add_argument(
        "--special-tokens-in-text", choices=("text", "keep", "error"), default="text",
        help="what <|endoftext|> in a text becomes: characters like any other, its id, or a "
        "rejected document (default: text)",
    )  # fmt: skip
    keys.add_argument(
        "--longest-document", type=_positive, default=1 << 30, metavar="BYTES",
        help="reject what is longer: a document must fit into memory several times "
        "(default: 1 GiB)",
    )  # fmt: skip
    keys.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="what to do with a malformed line or an unreadable file (default: skip, and report)",
    )
    ids = parser.add_argument_group("which ids")
    ids.add_argument(
        "--tokenizer", "--tokenizer-model", "--vocab-file", required=True, metavar="NAME",
        help="tokenizer.json, GPT-2's vocab.json, SentencePiece's NAME.model, tiktoken's ranks, "
        "tekken.json, a folder with one of them, NAME[@REVISION] of the Hugging Face hub, or bytes",
    )  # fmt: skip
    ids.add_argument("--merge-file", metavar="FILE", help="GPT-2's merges.txt")
    ids.add_argument(
        "--append-eod", action="store_true", help="end every document with the end-of-document id"
    )
    ids.add_argument(
        "--eod-token", help="name of that token (default: the first usual one, <|endoftext|>, ...)"
    )
    ids.add_argument(
        "--engine", choices=("auto", "gigatoken", "reference"), default="auto",
        help="what encodes: gigatoken where its ids are found equal, or the tokenizer's own "
        "library (default: auto)",
    )  # fmt: skip
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    parser.add_argument(
        "--workers", type=_positive, default=1, help="processes (default: 1); any gives equal bytes"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset made from something else"
    )
    for name in _NO_EFFECT:
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
