"""Delete the checkpoints of a run that need not be kept: never the one that it would resume from.

%(prog)s runs/1B --keep-last 2 --keep-every 10000 --keep-step 5000 --dry-run

A run that is training is left alone: it prunes for itself, by its `checkpoint` options.
"""

import argparse
import sys
from pathlib import Path

from megatron_gptx.checkpoint.choice import nothing_in
from megatron_gptx.checkpoint.latest import lock, newest
from megatron_gptx.checkpoint.manifest import CheckpointError
from megatron_gptx.checkpoint.names import checkpoint_folder, checkpoints
from megatron_gptx.checkpoint.prune import delete, superfluous
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.training import CheckpointConfig


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    options = CheckpointConfig(
        keep_last=args.keep_last, keep_every=args.keep_every, keep_steps=args.keep_step
    )
    try:
        return _prune(args.run_dir, options, dry_run=args.dry_run)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _prune(run_dir: Path, options: CheckpointConfig, *, dry_run: bool) -> int:
    folder = checkpoint_folder(run_dir)
    if not checkpoints(folder):
        raise nothing_in(run_dir)
    # Held until this process ends, so that no run starts meanwhile.
    held = lock(folder)
    found = newest(run_dir)
    if found is None:
        raise CheckpointError(f"{folder / 'latest'} names none of the checkpoints; nothing is done")
    failed = 0
    for path in superfluous(folder, newest=found.path, options=options):
        if dry_run:
            print(f"would delete {path}")
        elif delete(path):
            print(f"deleted {path}")
        else:
            failed += 1
            what = "" if path.exists() else " as a whole; the next run removes what is left"
            print(f"{path} could not be deleted{what}", file=sys.stderr)
    kept = checkpoints(folder)
    if not dry_run:
        print(f"kept {', '.join(path.name for path in kept)}")
    held.close()
    return 1 if failed else 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--keep-last", type=_positive, required=True, metavar="N", help="newest ones to keep"
    )
    parser.add_argument(
        "--keep-every", type=_positive, metavar="M", help="keep those of multiples of step M"
    )
    parser.add_argument(
        "--keep-step",
        type=_positive,
        metavar="S",
        nargs="+",
        action="extend",
        default=[],
        help="keep these steps",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
