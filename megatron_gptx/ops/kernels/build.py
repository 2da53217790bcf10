"""Compiling the kernels in csrc/ for this machine: once, whoever asks first.

The CUDA half, the .cu files, is left out where there is no CUDA compiler or no reason for it.
`python -m megatron_gptx.ops.kernels.build` does so ahead of time. The result lies in
TORCH_EXTENSIONS_DIR, or else in ~/.cache/megatron_gptx, in a folder named after everything that it
depends on.
"""

import fcntl
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch

from megatron_gptx.config.shipped import shipped_folder
from megatron_gptx.ops.kernels import nvcc
from megatron_gptx.ops.kernels.nvcc import CudaBuildError

SOURCES = shipped_folder("csrc")
# No a * b + c in one rounding unless a kernel asks for it: a score must not depend on the compiler.
COMPILER_FLAGS = ("-O3", "-ffp-contract=off", "-fopenmp")
LINKER_FLAGS = ("-fopenmp",)


class BuildError(Exception):
    """The kernels cannot be built here: the message says why, in one line."""


def ensure_built(say: Callable[[str], object], *, sources: Path = SOURCES) -> Path:
    """Return the compiled library, compiling it first where that has not been done.

    Of processes that come here together, one compiles and the others wait for it.

    Args:
        say: takes a line before something that lasts.
        sources: folder of the C++ and CUDA files, every one of which is compiled.

    Raises:
        BuildError: there is nothing to compile, or no way to.
    """
    wanted, compiler = _cuda_half()
    files = _files(sources, compiler)
    library = _place(sources, files, wanted, compiler)
    folder, done = library.parent, library.parent / "done"
    if done.exists():
        return library
    try:
        with _progress(folder, len(_compiled(files)), say), _exclusive(folder, say):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                say(
                    f"building the kernels in {folder}, once: one to two minutes on two idle "
                    "cores, longer beside other programs"
                )
                if wanted and not compiler:
                    say("building for the CPU only: no nvcc in CUDA_HOME, nor on the PATH")
                linked = _compile_cuda(compiler, wanted, files, folder, say) if compiler else []
                _compile(_compiled(files), folder, linked)
                done.touch()
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error}") from error
    return library


def find_built(*, sources: Path = SOURCES) -> Path | None:
    """Return the compiled library, or None where it would have to be compiled first.

    Raises:
        BuildError: there is nothing to compile.
    """
    wanted, compiler = _cuda_half()
    library = _place(sources, _files(sources, compiler), wanted, compiler)
    return library if (library.parent / "done").exists() else None


def _cuda_half() -> tuple[tuple[str, ...], Path | None]:
    """Return the architectures that there is a reason for, and nvcc if it is needed and there."""
    try:
        wanted = nvcc.wanted_architectures()
    except CudaBuildError as error:
        raise BuildError(str(error)) from error
    return wanted, nvcc.find_compiler() if wanted else None


def _files(sources: Path, compiler: Path | None) -> list[Path]:
    read = (".cpp", ".h", ".cu", ".cuh") if compiler else (".cpp", ".h")
    files = sorted(path for path in sources.rglob("*") if path.suffix in read)
    if not files:
        raise BuildError(f"there are no kernel sources in {sources}")
    return files


def _compiled(files: list[Path]) -> list[Path]:
    """Return what the compiler for CPUs is given, a file at a time."""
    return [path for path in files if path.suffix == ".cpp"]


def _place(
    sources: Path, files: list[Path], wanted: tuple[str, ...], compiler: Path | None
) -> Path:
    half = (str(compiler), *wanted) if compiler else ()
    folder = _cache() / f"gptx_{_fingerprint(sources, files, half)}"
    return folder / f"{folder.name}.so"


def _cache() -> Path:
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "megatron_gptx"


def _fingerprint(sources: Path, files: list[Path], half: tuple[str, ...]) -> str:
    """Return a name for the sources, their flags, and the torch and the machines they are for."""
    digest = sha256()
    if half:
        half = (*half, *nvcc.COMPILER_FLAGS)
    for part in (torch.__version__, platform.machine(), *COMPILER_FLAGS, *LINKER_FLAGS, *half):
        digest.update(f"{part}\0".encode())
    for path in files:
        digest.update(f"{path.relative_to(sources).as_posix()}\0".encode())
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@contextmanager
def _exclusive(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock that the system takes away from a process that dies."""
    path = folder.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that builds the kernels")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress(folder: Path, num_files: int, say: Callable[[str], object]) -> Iterator[None]:
    """Say now and then how far a build is, whichever process does it."""
    started_at, finished = time.monotonic(), threading.Event()

    def report() -> None:
        # Soon at first, to show that something happens, then seldom enough for a log.
        seconds = 5.0
        while not finished.wait(seconds):
            # An object's file appears when it is whole.
            built = min(len(list(folder.glob("*.o"))), num_files)
            elapsed = time.monotonic() - started_at
            say(f"kernels: {built} of {num_files} files compiled after {elapsed:.0f} s")
            seconds = min(2 * seconds, 60.0)

    reporter = threading.Thread(target=report, name="build progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()


def _compile_cuda(
    compiler: Path,
    architectures: Sequence[str],
    files: list[Path],
    folder: Path,
    say: Callable[[str], object],
) -> list[str]:
    """Compile the CUDA half; return what links it."""
    sources = [path for path in files if path.suffix == ".cu"]
    try:
        return nvcc.compile_objects(compiler, sources, architectures, folder, say)
    except CudaBuildError as error:
        raise BuildError(_first_error(str(error))) from error


def _compile(sources: list[Path], folder: Path, linked: list[str]) -> None:
    try:
        # Takes a second, which only a build is worth.
        from torch.utils import cpp_extension
    except ImportError as error:
        raise BuildError(f"PyTorch's compiler support cannot be imported ({error})") from error
    # What a build that died has left; the lock around us is the one that counts.
    (folder / "lock").unlink(missing_ok=True)
    try:
        with _scripts_on_path():
            cpp_extension.load(
                folder.name,
                [str(path) for path in sources],
                extra_cflags=list(COMPILER_FLAGS),
                extra_ldflags=[*linked, *LINKER_FLAGS],
                build_directory=str(folder),
                is_python_module=False,
            )
    except RuntimeError as error:
        raise BuildError(_first_error(str(error))) from error


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Let ninja be found beside this interpreter, whose environment need not be active."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _first_error(output: str) -> str:
    """Return the line of a failed build that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    signs = ("error:", "not found", "fatal")
    named = [line for line in lines if any(sign in line for sign in signs)]
    return f"the build failed: {(named or lines or ['no output'])[0]}"


def main() -> int:
    """Build, and say where."""
    try:
        library = ensure_built(_note)
    except BuildError as error:
        _note(str(error))
        return 1
    sys.stdout.write(f"{library}\n")
    return 0


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
