"""Compile the kernels for this machine ahead of their first use, and print where they lie."""

import argparse

from megatron_gptx.ops.kernels import build


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return its exit status."""
    argparse.ArgumentParser(prog=prog, description=__doc__).parse_args(argv)
    return build.main()
