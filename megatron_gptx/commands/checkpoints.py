"""Show a run's checkpoints, verify their checksums, or compare two of them.

%(prog)s list runs/1B
%(prog)s verify runs/1B
%(prog)s verify runs/1B/checkpoints/step-00001000
%(prog)s diff runs/1B/checkpoints/step-00001000 runs/other

A run stands for its newest checkpoint in `diff`, and for all of them in `verify`. `diff` ends with
status 0 where everything is equal, 1 where something differs, 2 where one is damaged.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from megatron_gptx.checkpoint.changes import changed_values
from megatron_gptx.checkpoint.choice import is_checkpoint, named, nothing_in
from megatron_gptx.checkpoint.compare import differences
from megatron_gptx.checkpoint.integrity import all_names, damage, misfit
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import (
    Checkpoint,
    CheckpointError,
    VanishedError,
    printable,
    read,
)
from megatron_gptx.checkpoint.names import LATEST, MANIFEST, checkpoint_folder, checkpoints, step_of
from megatron_gptx.config.errors import UserError

BEST = "best"
_HEADER = ("step", "", "saved", "size", "layout", "precision", "loss", "files")


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the tool; return its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        if args.action == "list":
            return _list(args.run_dir)
        if args.action == "verify":
            return _verify(args.path)
        return _diff(named(args.one), named(args.other))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _list(run_dir: Path) -> int:
    """Print one line for each checkpoint; return 2 where one of them cannot be used."""
    latest, best, problem = None, None, None
    try:
        if (found := newest(run_dir)) is not None:
            latest, best = found.path, found.best_step
    except CheckpointError as error:
        problem = str(error)
    losses = _losses(run_dir / "metrics.jsonl")
    rows: list[tuple[str, ...]] = [_HEADER]
    damaged = problem is not None
    for path in _all_of(run_dir):
        step = step_of(path)
        marks = [LATEST] * (path == latest) + [BEST] * (step == best)
        loss = f"{losses[step]:.4f}" if step in losses else "-"
        try:
            checkpoint = read(path)
            layout = checkpoint.manifest["layout"]
            state = next(filter(None, (misfit(checkpoint, n) for n in all_names(checkpoint))), None)
            about = (*_about(checkpoint), str(layout.get("precision", "?")))
        except VanishedError:
            continue  # the run has deleted it meanwhile
        except CheckpointError as error:
            state, about = str(error), ("-",) * 4
        damaged |= state is not None
        rows.append(
            (str(step), ", ".join(marks), *about, loss, "whole" if state is None else state)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    for row in rows:
        cells = [row[0].rjust(widths[0]), *map(str.ljust, row[1:], widths[1:]), row[-1]]
        print(printable("  ".join(cells)))
    if problem is not None:
        print(problem, file=sys.stderr)
    return 2 if damaged else 0


def _about(checkpoint: Checkpoint) -> tuple[str, str, str]:
    """Return age, size and layout in words."""
    layout, files = checkpoint.manifest["layout"], checkpoint.manifest["files"]
    minutes = (time.time() - (checkpoint.path / MANIFEST).stat().st_mtime) / 60
    hours = minutes / 60
    age = f"{minutes:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 48 else ""
    stages, replicas, zero = (
        layout.get(key, "?") for key in ("pipeline_stages", "data_replicas", "zero_stage")
    )
    return (
        f"{age or f'{hours / 24:.0f} days'} ago",
        f"{sum(file['bytes'] for file in files.values()) / 1e6:,.1f} MB",
        f"PP {stages} x DP {replicas}, ZeRO {zero}",
    )


def _losses(path: Path) -> dict[int, float]:
    """Return the training loss of each step that a metrics file names."""
    losses: dict[int, float] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            row: Any = json.loads(line)
            losses[int(row["step"])] = float(row["loss"])
        except (ValueError, TypeError, KeyError):
            continue  # torn by a crash, or a loss that was no number
    return losses


def _verify(path: Path) -> int:
    """Check every file of a checkpoint, or of all of a run; return 2 where one is damaged."""
    problems: list[str] = []
    for folder in [path] if is_checkpoint(path) else _all_of(path):
        try:
            problems += _verify_files(read(folder))
        except VanishedError as error:
            if is_checkpoint(path):
                raise
            print(error, file=sys.stderr)  # the run has deleted it meanwhile
        except CheckpointError as error:
            print(error, file=sys.stderr)
            problems.append(str(error))
    if not is_checkpoint(path):
        try:
            newest(path)
        except CheckpointError as error:
            if str(error) not in problems:
                print(error, file=sys.stderr)
            problems.append(str(error))
    return 2 if problems else 0


def _verify_files(checkpoint: Checkpoint) -> list[str]:
    """Check every file of a checkpoint, and return what is wrong with them."""
    names, problems, done = all_names(checkpoint), [], 0
    sizes = {name: entry["bytes"] for name, entry in checkpoint.manifest["files"].items()}
    for name in names:
        _show(f"{checkpoint.path.name}: {done / max(sum(sizes.values()), 1):4.0%}  {name}")
        if problem := damage(checkpoint, [name]):
            problems.append(problem)
        done += sizes.get(name, 0)
    _show("")
    for problem in problems:
        print(problem, file=sys.stderr)
    found = f"{len(problems)} of them damaged" if problems else "intact"
    print(printable(f"{checkpoint.path}: {len(names)} files, {done:,} bytes, {found}"))
    return problems


def _show(text: str) -> None:
    """Replace the line that says how far it is, on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{printable(text)}")
        sys.stderr.flush()


def _diff(one: Checkpoint, other: Checkpoint) -> int:
    """Print what differs; return whether something does."""
    changed = 0
    for part in ("state", "optimizer", "layout", "config"):
        for change in changed_values(one.manifest[part], other.manifest[part]):
            print(printable(f"{part:<10} {change}"))
            changed += part != "layout"
    num_equal = num_tensors = 0
    for found in differences(one, other):
        numbers = f"largest difference {found.largest:.3g}, relative {found.relative:.3g}"
        said = "equal" if found.equal else found.missing or numbers
        print(printable(f"layer {found.layer:<4} {found.name:<40} {found.kind:<10} {said}"))
        num_tensors += 1
        num_equal += found.equal
    print(f"{num_equal:,} of {num_tensors:,} tensors are equal")
    return int(changed > 0 or num_equal < num_tensors)


def _all_of(run_dir: Path) -> list[Path]:
    found = checkpoints(checkpoint_folder(run_dir))
    if not found:
        raise nothing_in(run_dir)
    return found


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("list", help="show a run's checkpoints")
    action.add_argument("run_dir", type=Path)
    action = actions.add_parser("verify", help="check all checksums; status 2 where one differs")
    action.add_argument("path", type=Path, help="a run or one checkpoint")
    action = actions.add_parser("diff", help="compare configurations, weights and optimizers")
    action.add_argument("one", type=Path, help="a run or one checkpoint")
    action.add_argument("other", type=Path, help="a run or one checkpoint")
    return parser
