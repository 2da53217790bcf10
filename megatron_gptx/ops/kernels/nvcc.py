"""Compiling the CUDA half of the kernels, where there is a compiler and a reason for it.

The reason is a visible GPU, or TORCH_CUDA_ARCH_LIST, which names others: `8.0;9.0+PTX`. The sources
include nothing of torch, so that nvcc compiles them beside any build of it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

COMPILER_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC", "--threads", "0")


class CudaBuildError(Exception):
    """nvcc fails: the message is what it says."""


def find_compiler() -> Path | None:
    """Return nvcc, that of CUDA_HOME first, or None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        found = shutil.which("nvcc", path=str(Path(home) / "bin"))
    else:
        found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def wanted_architectures() -> tuple[str, ...]:
    """Return what to compile for, such as ("8.0", "9.0+PTX"); nothing without a reason.

    Raises:
        CudaBuildError: TORCH_CUDA_ARCH_LIST holds something else than such numbers.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        devices = range(torch.cuda.device_count())
        capabilities = {torch.cuda.get_device_capability(device) for device in devices}
        return tuple(f"{major}.{minor}" for major, minor in sorted(capabilities))
    names = re.split(r"[;,\s]+", listed.strip())
    for name in names:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", name):
            raise CudaBuildError(
                f"TORCH_CUDA_ARCH_LIST names {name!r}; give numbers such as 8.0 or 9.0+PTX"
            )
    return tuple(sorted(set(names)))


def compile_objects(
    compiler: Path,
    sources: Sequence[Path],
    architectures: Sequence[str],
    folder: Path,
    say: Callable[[str], object],
) -> list[str]:
    """Compile each source to an object in a folder; return what the linker must be told.

    Args:
        compiler: nvcc.
        sources: .cu files.
        architectures: as `wanted_architectures` returns them; what this nvcc does not know is left
            out.
        folder: of the objects.
        say: takes a line about what is left out.

    Returns:
        The objects and the libraries they need; nothing if no architecture is left.

    Raises:
        CudaBuildError: nvcc fails.
    """
    known = set(run([str(compiler), "--list-gpu-arch"]).split())
    possible = [name for name in architectures if f"compute_{_digits(name).rstrip('af')}" in known]
    if left_out := [name for name in architectures if name not in possible]:
        say(
            f"{compiler} does not compile for {', '.join(left_out)}: such GPUs get no kernels; "
            "7.0 needs CUDA 12.9 or older"
        )
    if not possible:
        return []
    objects = [folder / f"{source.stem}.cuda.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        run([str(compiler), *flags(possible), "-c", str(source), "-o", str(target)])
    # nvcc knows where its libraries lie, which differs between installations.
    told = run([str(compiler), "--dryrun", "none.cu"]).partition("#$ LIBRARIES=")[2]
    paths = re.findall(r'"(-L[^"]+)"', told.partition("\n")[0])
    # The runtime is linked in, so that the library loads where there is no driver and no CUDA.
    return [*map(str, objects), *paths, "-lcudart_static", "-lrt", "-lpthread", "-ldl"]


def flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's flags for some architectures."""
    chosen = [*COMPILER_FLAGS, f'-DGPTX_CUDA_ARCHITECTURES="{" ".join(architectures)}"']
    if host := os.environ.get("CXX"):
        chosen += ["-ccbin", host]
    for name in architectures:
        number = _digits(name)
        chosen += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.endswith("+PTX"):
            chosen += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return chosen


def serves(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Tell whether code for some architectures runs on a device of a compute capability.

    Machine code runs on its own major version from its minor one on; what ends in `+PTX` is
    translated for anything newer.
    """
    for name in architectures:
        major, minor = (int(part) for part in re.findall(r"\d+", name)[:2])
        specific = re.search(r"\d[af]", name)
        if (major, minor) == capability:
            return True
        if major == capability[0] and minor < capability[1] and not specific:
            return True
        if name.endswith("+PTX") and (major, minor) < capability:
            return True
    return False


def _digits(name: str) -> str:
    return name.removesuffix("+PTX").replace(".", "")


def run(command: list[str]) -> str:
    """Return what a compiler says; raise CudaBuildError with it if the compiler fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CudaBuildError(f"{done.stdout}\n{done.stderr}")
    return f"{done.stdout}\n{done.stderr}"
