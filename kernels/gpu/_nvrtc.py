"""CUDA source to machine code with NVRTC, NVIDIA's compiler as a library: it needs neither a GPU
nor a driver. https://docs.nvidia.com/cuda/nvrtc"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import sys
from typing import Any

from .._cache import DiskCache

FOLDER = os.path.join(os.path.dirname(__file__), "cu")
INSTALL = "pip install 'nvidia-cuda-nvrtc==13.0.*'"


class CompileError(ValueError):
    """NVRTC is not there, or does not accept a kernel; holds what it printed."""


@functools.cache
def _library() -> Any:
    """NVRTC from its package, else from the CUDA toolkit of the machine."""
    for folder in sys.path:
        for path in glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libnvrtc.so.1[0-9]")):
            for part in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*")):
                ctypes.CDLL(part, ctypes.RTLD_GLOBAL)  # NVRTC looks for it by its plain name
            return ctypes.CDLL(path)
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompileError(f"NVRTC, the CUDA compiler, was not found: {INSTALL}")


def why_missing() -> str | None:
    """Why NVRTC cannot run here and what to do; None if it can."""
    try:
        _library()
    except (CompileError, OSError) as error:
        return str(error)
    return None


def source(file: str) -> str:
    """The text of ``cu/<file>.cu``."""
    with open(os.path.join(FOLDER, f"{file}.cu"), encoding="utf-8") as text:
        return text.read()


def compile_cubin(
    text: str, name: str, arch: str, options: tuple[str, ...] = ()
) -> tuple[bytes, str]:
    """The machine code of a source for ``arch`` ("sm_90"), and what the compiler printed.

    Raises CompileError with the compiler's message, which names the lines.
    """
    nvrtc = _library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def check(code: int, what: str) -> None:
        if code:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise CompileError(f"{what}: {nvrtc.nvrtcGetErrorString(code).decode()}")

    check(nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None
    ), "nvrtcCreateProgram")  # fmt: skip
    try:
        given = [f"-arch={arch}", "-std=c++17", f"-I{FOLDER}", *options]
        arguments = (ctypes.c_char_p * len(given))(*[option.encode() for option in given])
        code = nvrtc.nvrtcCompileProgram(program, len(given), arguments)
        check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)), "nvrtcGetProgramLogSize")
        log = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetProgramLog(program, log), "nvrtcGetProgramLog")
        printed = log.value.decode()
        if code:
            raise CompileError(f"{name}.cu does not compile for {arch}:\n{printed}")
        check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
        cubin = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
        return cubin.raw, printed
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _cache() -> DiskCache:
    """The disk cache of cubins, whose stamp is over all sources and NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    stamp = hashlib.sha256(f"cuda {major.value}.{minor.value}".encode())
    for file in sorted(os.listdir(FOLDER)):
        with open(os.path.join(FOLDER, file), "rb") as text:
            stamp.update(file.encode() + b"\0" + text.read())
    return DiskCache(stamp.hexdigest()[:16])


def cubin(file: str, dtype: str, arch: str) -> bytes:
    """The machine code of ``cu/<file>.cu`` for this dtype, from the disk cache or made."""
    name = f"{file}-{dtype}-{arch}"
    found = _cache().load(name)
    if found is None:
        found, _ = compile_cubin(source(file), file, arch, (f"-DT={dtype}",))
        _cache().save(name, found)
    return found
