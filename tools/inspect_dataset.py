#!/usr/bin/env python3
"""Show what a token dataset holds: counts, document lengths, entropy, and documents as text.

tools/inspect_dataset.py data/corpus
tools/inspect_dataset.py data/corpus --tokenizer tokenizer.json --document 17
"""

import argparse
import math
import signal
import sys
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.data.indexed_dataset import IndexedDataset
from megatron_gptx.data.statistics import length_histogram, token_counts, unigram_entropy
from megatron_gptx.tokenizer.build import load_tokenizer

_BAR = 40


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        dataset = IndexedDataset(args.prefix)
        if args.document is None:
            _print_summary(dataset)
        else:
            _print_document(dataset, args.document, args.tokenizer)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _print_summary(dataset: IndexedDataset) -> None:
    counts = token_counts(dataset)
    entropy = unigram_entropy(dataset)
    print(f"dataset      {dataset.prefix}")
    print(f"documents    {dataset.num_documents:,} in {dataset.num_sequences:,} sequences")
    print(f"tokens       {dataset.num_tokens:,} as {dataset.dtype.name}")
    print(f"ids          {(counts > 0).sum():,} different, the largest {counts.size - 1:,}")
    print(f"entropy      {entropy:.4f} nats, {entropy / math.log(2):.4f} bits per token (unigram)")
    print("tokens per document")
    histogram = length_histogram(dataset)
    tallest = max((count for _, count in histogram), default=1)
    for bound, count in histogram:
        bar = "#" * math.ceil(count / tallest * _BAR)
        print(f"  up to {bound:>13,} {count:>13,} {bar}".rstrip())


def _print_document(dataset: IndexedDataset, index: int, tokenizer: Path | None) -> None:
    if not 0 <= index < dataset.num_documents:
        raise UserError(
            f"{dataset.prefix}: no document {index}; they run from 0 to {dataset.num_documents - 1}"
        )
    ids = dataset.document(index).tolist()
    if tokenizer is None:
        print(*ids)
        return
    loaded = load_tokenizer(tokenizer)
    if ids and max(ids) >= loaded.vocab_size:
        raise UserError(
            f"{dataset.prefix}: id {max(ids)} of document {index} is outside the "
            f"{loaded.vocab_size} of {tokenizer}, which is not this dataset's tokenizer"
        )
    print(loaded.decode(ids))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, help="PREFIX of PREFIX.bin and PREFIX.idx")
    parser.add_argument("--document", type=int, metavar="N", help="show document N only")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to show it as text")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
