"""Compiling the emulated kernels with the compiler that builds the real ones."""

import os
from pathlib import Path

import torch

from tests.ops.programs import CSRC, TESTS, compile_once

FOLDER = TESTS / "emulator"
# The kernels read their rows as words of other types, as CUDA allows.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas")


def compile_ops() -> Path:
    """Return a library that defines `torch.ops.gptx_emulated`."""
    torch_root = Path(torch.__file__).parent
    command = [*_compiler(), "-O1", "-fPIC", "-shared", "-isystem", str(torch_root / "include")]
    # Packages of PyTorch 2.6 have the older layout of std::string.
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [str(FOLDER / "emulated_ops.cpp")]
    command += [f"-L{torch_root / 'lib'}", "-lc10", "-ltorch_cpu"]
    return compile_once("emulated_ops.so", command, FOLDER, CSRC)


def compile_wrong_kernels() -> Path:
    """Return a program that tells what the emulator makes of wrong kernels."""
    command = [*_compiler(), "-O1", str(FOLDER / "wrong_kernels.cpp")]
    return compile_once("wrong_kernels", command, FOLDER)


def compile_sanitized() -> Path:
    """Return a program that runs the kernels under sanitizers, of addresses and of behaviour."""
    command = [*_compiler(), "-O1", "-g1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", str(FOLDER / "sanitized.cpp")]
    return compile_once("sanitized", command, FOLDER, CSRC)


def _compiler() -> list[str]:
    return [os.environ.get("CXX", "c++"), *FLAGS]
