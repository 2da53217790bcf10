"""Every CUDA kernel compiles for V100, A100 and H100, and none that matters spills a register."""

import re
from pathlib import Path

import pytest

from megatron_gptx.ops.kernels import nvcc
from tests.ops.nvrtc import find_nvrtc
from tests.ops.programs import CSRC, make_once

ARCHITECTURES = ("8.0", "9.0")
NUMBERS, WARP_CHUNKS, BLOCK_CHUNKS = ("Float32", "BFloat16", "Float16"), (2, 4, 8), (4, 8, 16)
FORWARD = {(number, 1, chunks) for number in NUMBERS for chunks in WARP_CHUNKS}
FORWARD |= {(number, 4, chunks) for number in NUMBERS for chunks in BLOCK_CHUNKS}
BACKWARD = {(number, warps) for number in NUMBERS for warps in (1, 4)}
OVER_KEPT = {(number, whole) for number in NUMBERS for whole in (0, 1)}
# By their names, what they are given, and the parameters of their templates.
KERNELS = {
    "topk_softmax_forward": ("ForwardArguments", FORWARD),
    "topk_softmax_backward": ("BackwardArguments", BACKWARD),
    "sum_of_kept": ("SumArguments", OVER_KEPT),
    "kept_gradients": ("KeptGradientArguments", OVER_KEPT),
    "add_kept": ("AddArguments", {(1,)}),
}
# Neither headers nor host code: what NVRTC is given to compile, whole.
INSTANCES = """
#include "selected_keys.cuh"
#include "topk_softmax_backward.cuh"
#include "topk_softmax_forward.cuh"
namespace gptx {
"""


@pytest.fixture(scope="module")
def compiler() -> Path:
    """Return nvcc, or skip."""
    found = nvcc.find_compiler()
    if found is None:
        pytest.skip("no nvcc in CUDA_HOME, nor on the PATH")
    return found


def spilled_bytes(log: str) -> dict[tuple[str, str, tuple], int]:
    """Return the bytes that each kernel spills: {(architecture, name, parameters): bytes}."""
    found = {}
    pattern = (
        r"Compiling entry function '_ZN4gptx\d+(\w+?)I(\S+?)EEv\S+' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    for name, coded, architecture, stores, loads in re.findall(pattern, log, re.DOTALL):
        # ...topk_softmax_forwardINS_7Float32ELi1ELi8EEEv...
        parameters = re.findall(r"NS_\d+([A-Z]\w+?)(?:E|$)|L[ib](\d+)", coded)
        values = tuple(number or int(digits) for number, digits in parameters)
        found[architecture, name, values] = int(stores) + int(loads)
    return found


# More than a minute of nvcc's; in the ordinary suite, NVRTC reads the same sources.
@pytest.mark.extended
def test_nvcc_compiles_every_kernel_and_those_of_rows_up_to_2048_spill_nothing(compiler, tmp_path):
    source = CSRC / "cuda" / "topk_softmax_launch.cu"
    command = [str(compiler), *nvcc.flags(ARCHITECTURES), "-Xptxas", "-v", "-c", str(source)]

    def write_log(path: Path) -> None:
        path.write_text(nvcc.run([*command, "-o", str(tmp_path / "kernels.o")]))

    log = make_once("nvcc.log", " ".join(command), write_log, CSRC)
    spilled = spilled_bytes(log.read_text())
    assert set(spilled) == {
        (architecture.replace(".", ""), name, parameters)
        for architecture in ARCHITECTURES
        for name, (_, instances) in KERNELS.items()
        for parameters in instances
    }
    of_longer_rows = {("topk_softmax_forward", x) for x in FORWARD if x[1] == 4}
    assert {k for k, size in spilled.items() if size and k[1:] not in of_longer_rows} == set()


def test_nvrtc_compiles_every_kernel_for_a_v100():
    nvrtc = find_nvrtc(70)
    if nvrtc is None:
        pytest.skip("no NVRTC that knows sm_70; `make check-cuda` fetches one")
    instances = [
        f"template __global__ void {name}<{', '.join(map(str, values))}>({arguments});"
        for name, (arguments, found) in KERNELS.items()
        for values in sorted(found)
    ]
    source = INSTANCES + "\n".join(instances) + "\n}\n"
    options = ["--gpu-architecture=sm_70", "--std=c++17", f"--include-path={CSRC / 'cuda'}"]

    def write_code(path: Path) -> None:
        path.write_bytes(nvrtc.compile(source, "kernels.cu", options)[0])

    code = make_once("v100.cubin", f"{nvrtc.path} {source} {options}", write_code, CSRC)
    names = set(re.findall(rb"\.text\.(_ZN4gptx\d+\w+)", code.read_bytes()))
    assert len(names) == len(instances)
