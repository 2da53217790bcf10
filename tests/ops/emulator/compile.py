"""Compiling the emulated kernels with the compiler that builds the real ones."""

import os
import subprocess
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CSRC = FOLDER.parents[2] / "csrc"
# The kernels read their rows as words of other types, as CUDA allows.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas")


def compile_ops(folder: Path) -> Path:
    """Return a library that defines `torch.ops.gptx_emulated`."""
    torch_root = Path(torch.__file__).parent
    library = folder / "emulated_ops.so"
    command = [*_compiler(), "-O1", "-fPIC", "-shared", "-isystem", str(torch_root / "include")]
    # Packages of PyTorch 2.6 have the older layout of std::string.
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [str(FOLDER / "emulated_ops.cpp"), str(CSRC / "cuda" / "topk_softmax_tensors.cpp")]
    command += [f"-L{torch_root / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
    _run(command)
    return library


def compile_wrong_kernels(folder: Path) -> Path:
    """Return a program that tells what the emulator makes of wrong kernels."""
    program = folder / "wrong_kernels"
    _run([*_compiler(), "-O1", str(FOLDER / "wrong_kernels.cpp"), "-o", str(program)])
    return program


def compile_sanitized(folder: Path) -> Path:
    """Return a program that runs the kernels under sanitizers, of addresses and of behaviour."""
    program = folder / "sanitized"
    command = [*_compiler(), "-O1", "-g1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", str(FOLDER / "sanitized.cpp"), "-o", str(program)]
    _run(command)
    return program


def _compiler() -> list[str]:
    return [os.environ.get("CXX", "c++"), *FLAGS]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
