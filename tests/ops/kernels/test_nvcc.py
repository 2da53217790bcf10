"""The CUDA half is built where there is a compiler and a reason, and what it is for is known."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from megatron_gptx.ops.attention import topk_softmax
from megatron_gptx.ops.kernels import library, nvcc
from megatron_gptx.ops.kernels.build import SOURCES, BuildError, ensure_built
from megatron_gptx.ops.kernels.nvcc import CudaBuildError, serves, wanted_architectures

HOST = """
extern "C" __attribute__((weak)) const char* names();
extern "C" bool has_cuda_half() { return names; }
"""
DEVICE = """
__global__ void answer(int* x) { *x = 42; }
extern "C" const char* names() { return GPTX_CUDA_ARCHITECTURES; }
extern "C" int launch(int* x) { answer<<<1, 1>>>(x); return cudaGetLastError(); }
"""

needs_nvcc = pytest.mark.skipif(
    nvcc.find_compiler() is None, reason="no nvcc in CUDA_HOME, nor on the PATH"
)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """Return a folder with a small source for each half, an empty cache beside it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX")
    folder = tmp_path / "csrc"
    folder.mkdir()
    # PyTorch gives a second library of one process another name, if it were the same.
    (folder / "host.cpp").write_text(f"{HOST}// {tmp_path.name}\n")
    (folder / "device.cu").write_text(DEVICE)
    return folder


@needs_nvcc
def test_one_library_holds_both_halves_and_loads_without_a_driver(sources):
    lines: list[str] = []
    library = ctypes.CDLL(str(ensure_built(lines.append, sources=sources)))
    library.names.restype = ctypes.c_char_p
    assert library.names() == b"8.0 9.0+PTX"
    assert len(lines) == 1


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_is_left_out_and_said(sources, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "3.5;8.0")
    lines: list[str] = []
    library = ctypes.CDLL(str(ensure_built(lines.append, sources=sources)))
    library.names.restype = ctypes.c_char_p
    assert library.names() == b"8.0"
    assert "does not compile for 3.5" in lines[1]


@needs_nvcc
def test_a_failed_build_says_what_nvcc_said(sources):
    (sources / "wrong.cu").write_text("__global__ void f() { nonsense(); }\n")
    with pytest.raises(BuildError, match=r'wrong\.cu\(1\): error: identifier "nonsense"'):
        ensure_built(print, sources=sources)


@pytest.mark.parametrize("missing", ["compiler", "reason"])
def test_without_a_compiler_or_a_reason_only_the_cpu_half_is_built(
    sources, missing, monkeypatch, tmp_path
):
    if missing == "compiler":
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    else:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    lines: list[str] = []
    library = ctypes.CDLL(str(ensure_built(lines.append, sources=sources)))
    assert not ctypes.c_bool(library.has_cuda_half()).value
    assert any("for the CPU only: no nvcc" in line for line in lines) == (missing == "compiler")


def test_a_change_of_architectures_or_of_a_kernel_builds_anew(sources, monkeypatch):
    # Compiling is not the point.
    monkeypatch.setattr("megatron_gptx.ops.kernels.build._compile_cuda", lambda *_: [])
    monkeypatch.setattr("megatron_gptx.ops.kernels.build._compile", lambda *_: None)
    monkeypatch.setattr(nvcc, "find_compiler", lambda: Path("nvcc"))
    found = [ensure_built(print, sources=sources)]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX;8.0")
    assert ensure_built(print, sources=sources) == found[0]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    found.append(ensure_built(print, sources=sources))
    (sources / "rows.cuh").write_text("// A header counts too.\n")
    found.append(ensure_built(print, sources=sources))
    assert len(set(found)) == 3


def test_visible_gpus_are_compiled_for(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    capabilities = [(9, 0), (8, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    assert wanted_architectures() == ("8.0", "9.0")


@pytest.mark.parametrize("listed", ["Ampere", "8.0;80", "8.0+ptx"])
def test_a_list_that_holds_no_numbers_is_named(listed, sources, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(
        CudaBuildError, match=f"names '{listed.split(';')[-1]}'".replace("+", r"\+")
    ):
        wanted_architectures()
    with pytest.raises(BuildError, match="give numbers such as"):
        ensure_built(print, sources=sources)


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["8.0", "9.0"], (9, 0), True),
        (["8.0"], (8, 6), True),
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (9, 0), True),
        (["8.0+PTX"], (7, 0), False),
        (["9.0a"], (9, 0), True),
        (["9.0a"], (9, 1), False),
        ([], (9, 0), False),
    ],
)
def test_code_runs_where_cuda_says_it_does(architectures, capability, expected):
    assert serves(architectures, capability) == expected


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("built", "change", "reason"),
    [
        ([], {}, "no CUDA half"),
        (["8.0"], {}, "compiled for 8.0, and Some GPU needs 9.0; .*TORCH_CUDA_ARCH_LIST=9.0"),
        (["9.0"], {"size": (1, 1, 1, 16385)}, "up to 16384 keys, not 16385"),
        (["9.0"], {"dtype": torch.float64}, "not torch.float64"),
        (["9.0"], {}, None),
    ],
)
def test_the_reason_against_a_gpu_is_given(built, change, reason, monkeypatch):
    monkeypatch.setattr(torch.ops.gptx, "cuda_architectures", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with FakeTensorMode():
        scores = torch.empty(**({"size": (1, 1, 4, 4)} | change), device="cuda")
    found = topk_softmax.unsupported(scores) or library.problem_on(scores.device)
    assert found is None if reason is None else re.search(reason, found)


def test_objects_of_both_halves_have_names_of_their_own():
    names = [
        path.name.rpartition(".")[0] for path in SOURCES.rglob("*.c*") if path.suffix != ".cuh"
    ]
    assert len(names) == len(set(names))
