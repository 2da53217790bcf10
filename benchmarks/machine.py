"""What a benchmark on a CPU lets all its sides use, and by which clock it times them."""

import argparse
import os
import sys
import time

# To PyTorch, oneDNN, MKL, which heeds its variable on Intel's CPUs alone, and our kernels.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "GPTX_CPU_CAPABILITY",
)
VALUES = {
    "avx512": ("avx512", "DEFAULT", "AVX512", "avx512"),
    "avx2": ("avx2", "AVX2", "AVX2", "avx2"),
    "default": ("default", "SSE41", "SSE4_2", "default"),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --isa and --clock."""
    parser.add_argument(
        "--isa", choices=VALUES, help="instructions that all sides may use; default: the CPU's"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts this process's work alone, on a machine that does others', too; "
        "default: wall",
    )


def restart_with(isa: str | None) -> None:
    """Begin anew where this process may use other instructions: libraries ask only once."""
    wanted = dict(zip(VARIABLES, VALUES[isa], strict=True)) if isa else {}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
