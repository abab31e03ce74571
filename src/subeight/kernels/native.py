"""The C++ of this room: built when first asked for, kept by torch's extension loader, done without where it cannot be.

The source is plain C++ with no header of torch's, so a build takes seconds; it is made for the very CPU it runs on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import logging
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ninja
import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).parent / "native"
_AVX2, _AVX512, _LOOKUP = 2, 4, 8  # bits of `subeight_forms`
_FLAGS = ["/O2", "/openmp", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-march=native", "-std=c++17"]
_OPENMP = [] if sys.platform in ("win32", "darwin") else ["-fopenmp"]  # Apple's compiler has none: one thread there


@dataclass(frozen=True)
class Native:
    """The loaded library, and which of its forms are fast on this CPU."""

    library: ctypes.CDLL
    forms: int

    def __reduce__(self) -> tuple[Any, ...]:
        return native, ()  # a copy is the one of its process

    @property
    def has_vnni(self) -> bool:
        """Products of int8 by vector instructions."""
        return bool(self.forms & (_AVX2 | _AVX512))

    @property
    def has_bytes(self) -> bool:
        """The same for codes of 8 bits."""
        return bool(self.forms & _AVX512)

    @property
    def has_int8(self) -> bool:
        """Products of int8 rows with int8 weights by vector instructions."""
        return self.has_bytes and self.has_lookup

    @property
    def has_lookup(self) -> bool:
        """Products of bf16 with values from a table."""
        return bool(self.forms & _LOOKUP)


@cache
def native() -> Native | str:
    """The library, or in one sentence why there is none."""
    try:
        path = _built()
    except Exception as error:  # whatever a compiler, a linker or a read-only cache can say
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"the C++ kernels could not be built ({first.strip()}): install a C++ compiler and ninja, or do without."
    library = ctypes.CDLL(str(path))
    pointer: Any = ctypes.c_void_p
    number: Any = ctypes.c_int
    ends = [pointer, pointer, number, number, number]
    library.subeight_vnni.argtypes = [pointer] * 3 + [number] * 6 + ends
    library.subeight_lookup.argtypes = [pointer] * 4 + [number] * 4 + ends
    scale: Any = ctypes.c_float
    library.subeight_int8.argtypes = [pointer] * 2 + [number] * 2 + [scale] * 2 + ends
    library.subeight_unpack.argtypes = [pointer] * 4 + [number] * 4 + [pointer, number]
    return Native(library, library.subeight_forms())


def _built() -> Path:
    name = f"subeight_{_made_of()}"
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), ninja.BIN_DIR])  # where the loader looks for it
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        cpp_extension.load(
            name,
            [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            extra_cflags=_FLAGS + _OPENMP,
            extra_ldflags=_OPENMP,
            build_directory=str(folder),
            is_python_module=False,
        )
    return next(path for path in sorted(folder.iterdir()) if path.suffix in (".so", ".pyd", ".dll", ".dylib"))


def _made_of() -> str:
    """What a build depends on: the sources, and the very CPU, since a cache may be shared by machines."""
    about = Path("/proc/cpuinfo")
    flags = [line for line in about.read_text().splitlines() if line.startswith("flags")][:1] if about.is_file() else []
    told = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability(), *flags]
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()) if path.is_file()]
    return hashlib.sha256("\n".join([*told, *sources]).encode()).hexdigest()[:12]
