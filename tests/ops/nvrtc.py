"""NVRTC, NVIDIA's compiler as a library: version 12 compiles for V100, which nvcc 13 does not."""

import ctypes
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT / "build" / "nvrtc", Path(sysconfig.get_path("purelib")))


class Nvrtc:
    """The functions of one libnvrtc.so."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))

    def architectures(self) -> list[int]:
        """Return what it compiles for, such as 70."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return list(found)

    def compile(self, source: str, name: str, options: list[str]) -> tuple[bytes, str]:
        """Return machine code and the log; raise AssertionError with the log on an error."""
        program = ctypes.c_void_p()
        text = source.encode(), name.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), *text, 0, None, None)
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), given)
        log = self._read(program, "ProgramLog").rstrip(b"\0").decode()
        assert not failed, log
        return self._read(program, "CUBIN"), log

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, content)
        return content.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        assert status == 0, f"{function} returned {status}"


def find_nvrtc(architecture: int) -> Nvrtc | None:
    """Return a library that compiles for an architecture, or None where none is installed."""
    for place in PLACES:
        for library in sorted(place.glob("nvidia/*/lib/libnvrtc.so.*")):
            nvrtc = Nvrtc(library)
            if architecture in nvrtc.architectures():
                return nvrtc
    return None
