"""Print what a configuration costs: parameters, memory, traffic and arithmetic of every stage."""

import argparse
import json
from pathlib import Path

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.costs.plan import make_plan


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "config",
        type=Path,
        nargs="+",
        help="YAML file, or the name of a shipped one such as 1B; later ones override",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one option; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print exact numbers as JSON")
    options = parser.parse_args(argv)
    try:
        config = load(options.config, options.set)
        plan = make_plan(config)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(plan.as_dict(), indent=2) if options.json else plan.table())
    if config.launch.device == "auto" and not options.json:
        print(
            "Planned for GPUs, as launch.device is auto; --set launch.device=cpu plans for a CPU."
        )
    return 0
