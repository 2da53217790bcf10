"""The plain C++ kernels compute on Arm what they compute here, and no file needs another CPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_gptx.ops.kernels.build import COMPILER_FLAGS, SOURCES
from tests.ops.programs import CSRC, compile_once

CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROGRAM = Path(__file__).parent / "arm" / "rows_program.cpp"
# All that needs no torch; what is for other CPUs must be empty on this one.
KERNELS = [
    SOURCES / "cpu" / "simd" / name
    for name in ("key_order.cpp", "target_scalar.cpp", "target_avx2.cpp", "target_avx512.cpp")
]


def build(compiler: str) -> Path:
    """Return the program, compiled as the kernels are."""
    flags = [*COMPILER_FLAGS, "-std=c++20", "-static", f"-I{SOURCES}"]
    command = [compiler, *flags, str(PROGRAM), *map(str, KERNELS)]
    return compile_once(compiler, command, PROGRAM.parent, CSRC)


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def arm() -> Path:
    """Return the program for Arm."""
    if shutil.which(CROSS) is None:
        pytest.skip(f"{CROSS} is not installed")
    return build(CROSS)


def test_arm_computes_the_same_bits(arm):
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    here = output(str(build("g++")))
    assert len(here.splitlines()) == 24
    assert output(QEMU, str(arm)) == here


def test_arm_gets_vector_instructions(arm):
    objdump = CROSS.replace("g++", "objdump")
    if shutil.which(objdump) is None:
        pytest.skip(f"{objdump} is not installed")
    listing = output(objdump, "-d", "--no-show-raw-insn", str(arm))
    tiles = [part for part in listing.split("\n\n") if "add_tile" in part.partition(">:")[0]]
    assert tiles
    assert all("fmul\tv" in tile and ".4s" in tile for tile in tiles)
