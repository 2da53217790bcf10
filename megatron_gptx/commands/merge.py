"""Join token datasets to one: the documents of the first, then those of the second, and so on.

%(prog)s data/books data/code --output-prefix data/all
"""

import argparse
import sys
from pathlib import Path

from megatron_gptx.config.errors import UserError, describe
from megatron_gptx.dataset.merge_and_split import merge


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path, nargs="+", help="PREFIX of PREFIX.bin and PREFIX.idx")
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--overwrite", action="store_true", help="replace another dataset")
    args = parser.parse_args(argv)
    try:
        merged = merge(args.prefix, args.output_prefix, overwrite=args.overwrite)
    except (UserError, OSError) as error:
        print(describe(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"dataset      {merged.prefix}")
    print(f"documents    {merged.num_documents:,} in {merged.num_sequences:,} sequences")
    print(f"tokens       {merged.num_tokens:,} as {merged.dtype.name}")
    return 0
