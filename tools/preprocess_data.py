#!/usr/bin/env python3
"""Turn raw text into a token dataset: PREFIX.bin and PREFIX.idx, with PREFIX.d/manifest.json.

A file NAME.jsonl holds one document per line; every other file is one document; a folder stands
for the files below it that match --glob.

    tools/preprocess_data.py corpus.jsonl --tokenizer tokenizer.json --output-prefix data/corpus \\
        --append-eod --workers 8
    tools/preprocess_data.py src/ --glob '*.py' --tokenizer tokenizer.json --output-prefix data/src
"""

import argparse
import sys
import time
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.preprocess import Options, Summary, preprocess
from megatron_gptx.data.sources import DEFAULT_GLOBS, InputFile, find_files

_SHOWN = 10


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        files = find_files(args.input, globs=args.glob or DEFAULT_GLOBS, lists=args.list_file)
        options = Options(
            json_key=args.json_key,
            append_eod=args.append_eod,
            ftfy=args.ftfy,
            stop_on_error=args.on_error == "stop",
            eod_token=args.eod_token,
        )
        started_at = time.perf_counter()
        summary = preprocess(
            files,
            args.output_prefix,
            args.tokenizer,
            options,
            workers=args.workers,
            overwrite=args.overwrite,
        )
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    if summary is None:
        print(f"{args.output_prefix}: up to date")
    else:
        _print_summary(args.output_prefix, files, summary, time.perf_counter() - started_at)
    return 0


def _print_summary(prefix: Path, files: list[InputFile], summary: Summary, seconds: float) -> None:
    num_bytes = sum(file.num_bytes for file in files)
    num_rejected = sum(summary.rejected.values())
    for example in summary.rejected_examples[:_SHOWN]:
        print(f"rejected {example}", file=sys.stderr)
    if num_rejected > _SHOWN:
        print(f"and more: {prefix}.d/manifest.json names up to 100", file=sys.stderr)
    print(f"dataset      {prefix}")
    print(f"documents    {summary.num_documents:,} from {len(files):,} files")
    ratio = summary.text_bytes / summary.num_tokens
    print(f"tokens       {summary.num_tokens:,} ({ratio:.2f} bytes per token)")
    print(f"empty        {summary.empty:,} skipped")
    print(f"repaired     {summary.repaired:,} with characters that are not Unicode")
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary.rejected.items())
    print(f"rejected     {num_rejected:,}{f' ({reasons})' if reasons else ''}")
    print(f"time         {seconds:.1f} s, {num_bytes / 1e6 / seconds:.1f} MB/s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        help="which files of a folder to take; repeatable (default: *.jsonl and *.txt)",
    )
    parser.add_argument("--json-key", default="text", help="key of the text (default: text)")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    parser.add_argument(
        "--append-eod", action="store_true", help="end every document with the end-of-document id"
    )
    parser.add_argument(
        "--eod-token", help="name of that token (default: the first usual one, <|endoftext|>, ...)"
    )
    parser.add_argument("--ftfy", action="store_true", help="repair mojibake with ftfy.fix_text")
    parser.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="what to do with a malformed line or an unreadable file (default: skip, and report)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, help="processes (default: 1); any gives equal bytes"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset made from something else"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
