"""Show what a token dataset holds: counts, document lengths, entropy, repeats, documents as text.

%(prog)s data/corpus
%(prog)s data/corpus --duplicates --png lengths.png
%(prog)s data/corpus --tokenizer tokenizer.json --document 17
"""

import argparse
import math
import sys
from itertools import groupby
from pathlib import Path

from megatron_gptx.config.errors import UserError, describe, why
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.statistics import (
    find_duplicates,
    length_histogram,
    token_counts,
    unigram_entropy,
)
from megatron_gptx.tokenizer.build import load_tokenizer

_BAR = 40


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        dataset = IndexedDataset(args.prefix)
        if args.document is None:
            _print_summary(dataset)
            if args.duplicates:
                _print_duplicates(dataset)
            if args.png is not None:
                _draw_lengths(dataset, args.png)
        else:
            _print_document(dataset, args.document, args.tokenizer, args.merge_file)
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _print_summary(dataset: IndexedDataset) -> None:
    counts = token_counts(dataset)
    entropy = unigram_entropy(dataset)
    print(f"dataset      {dataset.prefix}")
    print(f"documents    {dataset.num_documents:,} in {dataset.num_sequences:,} sequences")
    print(f"tokens       {dataset.num_tokens:,} as {dataset.dtype.name}")
    if (num_learned := int(counts.sum())) < dataset.num_tokens:
        print(f"learned      {num_learned:,} of them, as labels")
    print(f"ids          {(counts > 0).sum():,} different, the largest {counts.size - 1:,}")
    print(f"entropy      {entropy:.4f} nats, {entropy / math.log(2):.4f} bits per token (unigram)")
    print("tokens per document")
    histogram = length_histogram(dataset)
    tallest = max((count for _, count in histogram), default=1)
    for bound, count in histogram:
        bar = "#" * math.ceil(count / tallest * _BAR)
        print(f"  up to {bound:>13,} {count:>13,} {bar}".rstrip())


def _print_duplicates(dataset: IndexedDataset) -> None:
    found = find_duplicates(dataset)
    share = found.num_tokens / max(dataset.num_tokens, 1)
    print(
        f"duplicates   {found.num_documents:,} documents repeat an earlier one, "
        f"{found.num_tokens:,} tokens ({share:.2%})"
    )
    for count, first in found.largest:
        print(f"  {count:>13,} times document {first:,}")


def _draw_lengths(dataset: IndexedDataset, path: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "--png needs the package matplotlib: pip install 'megatron_gptx[gpu]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    histogram = length_histogram(dataset)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.bar(range(len(histogram)), [count for _, count in histogram], width=0.9)
    axes.set_xticks(range(len(histogram)), [f"{bound:,}" for bound, _ in histogram], rotation=60)
    axes.set_xlabel("tokens per document, up to")
    axes.set_ylabel("documents")
    axes.set_title(f"{dataset.prefix.name}: {dataset.num_documents:,} documents")
    axes.grid(axis="y", alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:  # no picture has such an ending
        raise UserError(f"{path}: cannot be written: {why(error)}") from error
    print(f"picture      {path}")


def _print_document(
    dataset: IndexedDataset, index: int, tokenizer: str | None, merges: str | None
) -> None:
    if not 0 <= index < dataset.num_documents:
        raise UserError(
            f"{dataset.prefix}: no document {index}; they run from 0 to {dataset.num_documents - 1}"
        )
    ids = dataset.document(index).tolist()
    if tokenizer is None:
        print(*ids)
        return
    loaded = load_tokenizer(tokenizer, merges=merges)
    if ids and max(ids) >= loaded.vocab_size:
        raise UserError(
            f"{dataset.prefix}: id {max(ids)} of document {index} is outside the "
            f"{loaded.vocab_size} of {tokenizer}, which is not this dataset's tokenizer"
        )
    for learned, some in groupby(ids, key=lambda number: number >= 0):
        run = list(some)
        print(loaded.decode(run) if learned else f"[{len(run)} not learned]")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, help="PREFIX of PREFIX.bin and PREFIX.idx")
    parser.add_argument("--document", type=int, metavar="N", help="show document N only")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="to show it as text; as preprocess has it"
    )
    parser.add_argument("--merge-file", metavar="FILE", help="GPT-2's merges.txt")
    parser.add_argument(
        "--duplicates", action="store_true", help="count documents that repeat an earlier one"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the document lengths")
    return parser
