"""Draw the loss curves of one or several runs into a picture."""

import argparse
import json
from pathlib import Path

from megatron_gptx.config.errors import UserError, why


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, help="picture to write (RUN_DIR/loss.png)")
    parser.add_argument(
        "--entropy", type=float, help="draw this unigram entropy (nats per token) as a line"
    )
    options = parser.parse_args(argv)
    output = options.output or options.run_dirs[0] / "loss.png"
    try:
        draw({path: read_metrics(path) for path in options.run_dirs}, output, options.entropy)
    except UserError as error:
        return parser.exit(2, f"{error}\n")
    print(f"wrote {output}")
    return 0


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from None
    if not rows:
        raise UserError(f"{path} has no rows yet")
    return rows


def draw(runs: dict[Path, list[dict[str, float]]], output: Path, entropy: float | None) -> None:
    """Write a picture of training and validation loss over tokens."""
    try:
        import matplotlib  # an extra
    except ImportError:
        raise UserError(
            "a picture needs the package matplotlib: pip install 'megatron_gptx[gpu]'"
        ) from None

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for path, rows in runs.items():
        tokens = [row["tokens"] for row in rows]
        (line,) = axes.plot(
            tokens, [row["loss"] for row in rows], lw=0.8, alpha=0.6, label=f"{path.name}: training"
        )
        valid = [(row["tokens"], row["valid_loss"]) for row in rows if "valid_loss" in row]
        if valid:
            axes.plot(
                *zip(*valid, strict=True),
                marker="o",
                color=line.get_color(),
                label=f"{path.name}: validation",
            )
    if entropy is not None:
        axes.axhline(entropy, ls="--", lw=1, color="gray", label="unigram entropy")
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{output} cannot be written: {why(error)}") from None
