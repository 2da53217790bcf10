"""Read every byte of token datasets, and say all that is wrong with them.

Sizes and pointers, ids below the vocabulary, the end of every document, checksums, and the
tokenizer: as far as PREFIX.d/manifest.json or an option tells what they should be.

%(prog)s data/train data/valid --tokenizer data/tokenizer.json
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_gptx.config.errors import UserError, describe
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import (
    forbidden_ids,
    manifest_path,
    matching_manifest,
    read_manifest,
)
from megatron_gptx.dataset.verify import Expected, all_problems
from megatron_gptx.tokenizer.build import load_tokenizer


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        return _verify(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _verify(args: argparse.Namespace) -> int:
    status = 0
    try:
        given = args.tokenizer
        tokenizer = None if given is None else load_tokenizer(given, merges=args.merge_file)
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        return 2
    for prefix in args.prefix:
        try:
            dataset = IndexedDataset(prefix)
            manifest = matching_manifest(dataset)
            vocab_size = args.vocab_size
            if vocab_size is None and tokenizer is not None:
                vocab_size = tokenizer.vocab_size
            if vocab_size is None and manifest is not None:
                vocab_size = manifest["tokenizer"].get("vocab_size")
            expected = Expected(vocab_size, tokenizer.fingerprint if tokenizer else None)
            problems = list(all_problems(dataset, expected, threads=os.cpu_count() or 1))
            known = read_manifest(manifest_path(prefix)) or {}
        except (UserError, OSError) as error:
            problems = [describe(error)]
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            status = 2
            continue
        checked = [
            "sizes and pointers",
            f"ids below {vocab_size:,}" if vocab_size is not None else "ids not negative",
            *(["document ends"] if known.get("end_of_document") is not None else []),
            *(["markers"] if forbidden_ids(known) else []),
            *(["checksums"] if known.get("checksums") else []),
            *(["tokenizer"] if tokenizer and manifest else []),
        ]
        print(
            f"{prefix}: {dataset.num_documents:,} documents, {dataset.num_tokens:,} tokens; "
            f"checked: {', '.join(checked)}"
        )
        if not known:
            print(
                f"{prefix}: no manifest beside it, as datasets of others have none: nothing tells "
                "whether its bytes are those that were written",
                file=sys.stderr,
            )
    return status


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, nargs="+", help="PREFIX of PREFIX.bin and PREFIX.idx")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="the one they were made with, as preprocess has it"
    )
    parser.add_argument("--merge-file", metavar="FILE", help="GPT-2's merges.txt")
    parser.add_argument(
        "--vocab-size", type=int, help="ids that are allowed (default: the tokenizer's)"
    )
    return parser
