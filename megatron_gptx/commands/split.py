"""Divide a token dataset by documents: PREFIX_train, PREFIX_valid and so on, each whole by itself.

The shares are those of `data.split`, and fall between the same documents.

%(prog)s data/all --shares 969,30,1
%(prog)s data/all --shares 9,1 --names most,rest --output-prefix data/parts
"""

import argparse
import sys
from pathlib import Path

from megatron_gptx.config.errors import UserError, describe
from megatron_gptx.data.build import split_documents
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.merge_and_split import Piece, write_pieces


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        shares, names = _named_shares(args.shares, args.names)
        dataset = IndexedDataset(args.prefix)
        edges = [0, *split_documents(shares, dataset.num_documents)]
        output = args.output_prefix or args.prefix
        for name, first, last in zip(names, edges, edges[1:], strict=False):
            if first == last:
                print(f"{output}_{name}: no document falls to it", file=sys.stderr)
                continue
            made_by = {"tool": "split", "sources": [str(args.prefix)], "documents": [first, last]}
            part = write_pieces(
                [Piece(dataset, first, last)],
                Path(f"{output}_{name}"),
                made_by,
                overwrite=args.overwrite,
            )
            print(f"{part.prefix}: {part.num_documents:,} documents, {part.num_tokens:,} tokens")
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: parts that were named are whole", file=sys.stderr)
        return 130
    return 0


def _named_shares(shares: str, names: str) -> tuple[str, list[str]]:
    given = names.split(",")
    try:
        values = [float(share) for share in shares.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise UserError(f"--shares must be numbers such as 969,30,1, got {shares!r}")
    if len(values) > len(given) or len(set(given)) < len(given) or not all(given):
        raise UserError(f"--shares has {len(values)} parts, but --names names {names!r}")
    if any("/" in name for name in given):
        raise UserError(f"--names become part of files' names, which have no slash, got {names!r}")
    return shares, given[: len(values)]


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, help="PREFIX of PREFIX.bin and PREFIX.idx")
    parser.add_argument("--shares", required=True, help="shares of the documents, such as 969,30,1")
    parser.add_argument(
        "--names", default="train,valid,test", help="of the parts (default: train,valid,test)"
    )
    parser.add_argument(
        "--output-prefix", type=Path, metavar="PREFIX", help="of the parts (default: the same)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other datasets")
    return parser
