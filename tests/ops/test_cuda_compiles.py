"""Every CUDA kernel compiles for V100, A100 and H100, and none that matters spills a register."""

import re
from pathlib import Path

import pytest

from megatron_gptx.ops import cuda_build
from megatron_gptx.ops.build import SOURCES
from tests.ops.nvrtc import find_nvrtc

ARCHITECTURES = ("8.0", "9.0")
NUMBERS, WARP_CHUNKS, BLOCK_CHUNKS = ("Float32", "BFloat16", "Float16"), (2, 4, 8), (4, 8, 16)
FORWARD = {(number, 1, chunks) for number in NUMBERS for chunks in WARP_CHUNKS}
FORWARD |= {(number, 4, chunks) for number in NUMBERS for chunks in BLOCK_CHUNKS}
BACKWARD = {(number, warps, 0) for number in NUMBERS for warps in (1, 4)}
# Neither headers nor host code: what NVRTC is given to compile, whole.
INSTANCES = """
#include "topk_softmax_backward.cuh"
#include "topk_softmax_forward.cuh"
namespace gptx {
"""


@pytest.fixture(scope="module")
def compiler() -> Path:
    """Return nvcc, or skip."""
    found = cuda_build.find_compiler()
    if found is None:
        pytest.skip("no nvcc in CUDA_HOME, nor on the PATH")
    return found


def kernels_in(log: str) -> dict[tuple[str, str, int, int], int]:
    """Return the bytes that each kernel spills: {(architecture, number, warps, chunks): bytes}."""
    found = {}
    pattern = (
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    for name, architecture, stores, loads in re.findall(pattern, log, re.DOTALL):
        # ...topk_softmax_forwardINS_7Float32ELi1ELi8EEE...
        number, warps, chunks = re.search(r"INS_\d+(\w+?)ELi(\d)E(?:Li(\d+)E)?", name).groups()
        found[architecture, number, int(warps), int(chunks or 0)] = int(stores) + int(loads)
    return found


def test_nvcc_compiles_every_kernel_and_those_of_rows_up_to_2048_spill_nothing(compiler, tmp_path):
    source = SOURCES / "cuda" / "topk_softmax_launch.cu"
    command = [str(compiler), *cuda_build.flags(ARCHITECTURES), "-Xptxas", "-v", "-c", str(source)]
    spilled = kernels_in(cuda_build.run([*command, "-o", str(tmp_path / "kernels.o")]))
    expected = {(name.replace(".", ""), *k) for name in ARCHITECTURES for k in FORWARD | BACKWARD}
    assert set(spilled) == expected
    assert {kernel for kernel, size in spilled.items() if size and kernel[2] == 1} == set()


def test_nvrtc_compiles_every_kernel_for_a_v100():
    nvrtc = find_nvrtc(70)
    if nvrtc is None:
        pytest.skip("no NVRTC that knows sm_70; `make check-cuda` fetches one")
    forward = [f"forward<{n}, {w}, {c}>(ForwardArguments)" for n, w, c in sorted(FORWARD)]
    backward = [f"backward<{n}, {w}>(BackwardArguments)" for n, w, _ in sorted(BACKWARD)]
    instances = [f"template __global__ void topk_softmax_{x};" for x in forward + backward]
    source = INSTANCES + "\n".join(instances) + "\n}\n"
    options = ["--gpu-architecture=sm_70", "--std=c++17", f"--include-path={SOURCES / 'cuda'}"]
    code, _ = nvrtc.compile(source, "kernels.cu", options)
    names = set(re.findall(rb"\.text\.(_ZN4gptx\d+topk_softmax_(?:for|back)ward\w+)", code))
    assert len(names) == len(instances)
