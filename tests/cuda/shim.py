"""Runs the CUDA kernels of ``kernels/gpu/cu`` on the CPU: each file, unchanged, is compiled by g++
under ``cudashim.h``. In place of ``kernels.gpu._launch.device``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_ish.kernels._cache import VARIABLE
from tinygrad_ish.kernels.gpu import _launch, _nvrtc

from ..backends import STAND_IN
from . import fake_blas

HEADER = Path(__file__).with_name("cudashim.h")
MOST_SHARED = 227 << 10  # bytes of shared memory for a block of an H100
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}  # of warps and blocks
# In which most tests run: in all of them under `make test-gpu-shim`, in one under `make test`.
TESTED = list(ORDERS) if STAND_IN else ["shuffled"]


def _compiler() -> list[str]:
    """The C++ compiler's command: $CXX, one that is installed, or the package ziglang's clang."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return [str(shutil.which(name))]
    zig = importlib.util.find_spec("ziglang") is not None
    return [sys.executable, "-m", "ziglang", "c++"] if zig else []


COMPILER = _compiler()
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g0",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-w",
    "-fno-strict-aliasing",
]


def why_missing() -> str | None:
    """Why kernels cannot run on the CPU here, or None."""
    return None if COMPILER else "no C++ compiler: install g++, or pip install ziglang"


_one_at_a_time = threading.Lock()


class KernelError(AssertionError):
    """A kernel did what CUDA does not define, such as a barrier that not all threads reach."""


class ShimDevice:
    """The CPU in the place of a GPU; ``record(action, *arguments)``, if given, decides when a
    launch runs."""

    multiprocessors = 2
    arch = "sm_90a"

    def __init__(self, record: Callable[..., None] | None = None) -> None:
        self.order = "forward"
        self._record = record or (lambda action, *arguments: action())

    def load(self, file: str, dtype: str, name: str, shared: int = 0) -> Any:
        """A kernel as ``Device.load`` gives it, of ``cu/<file>.cu``."""
        if shared > MOST_SHARED:
            raise KernelError(f"{name}: a block has at most {MOST_SHARED} bytes, not {shared}")
        return self.kernel(build(_nvrtc.source(file), dtype), name)

    def kernel(self, library: Any, name: str) -> Any:
        """The kernel of this name in a library that ``build`` made."""
        start = getattr(library, f"shim_{name}")
        start.restype = ctypes.c_char_p

        def launch(grid: Any, block: Any, args: tuple[Any, ...], shared: int = 0) -> None:
            sizes = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
            held = [_argument(a) for a in args]

            def run() -> None:
                places = (ctypes.c_void_p * len(held))(*[ctypes.addressof(a) for a in held])
                with _one_at_a_time:  # ctypes lets other threads run meanwhile
                    error = start(places, sizes, ctypes.c_size_t(shared), ORDERS[self.order])
                if error:
                    raise KernelError(f"{name}: {error.decode()}")

            self._record(run, *args)

        return launch


@contextlib.contextmanager
def in_place_of_a_gpu(order: str = "forward") -> Iterator[ShimDevice]:
    """Let launches, and cuBLAS's products, run on the CPU, whatever arrays they get."""
    before, device = _launch.device, ShimDevice()
    device.order = order
    use(device)
    try:
        with fake_blas.in_place_of_cublas():
            yield device
    finally:
        use(before)


def use(device: Any) -> None:
    """Let launches run there from now on."""
    _launch.device = device
    _launch._kernel.cache_clear()


def _argument(value: Any) -> Any:
    """A kernel's parameter: pointers as addresses, numbers as CuPy passes them."""
    if isinstance(value, np.ndarray) and value.dtype.type is np.void:  # a struct, by value
        return (ctypes.c_char * value.nbytes).from_buffer_copy(value)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if type(value).__module__.startswith("cupy"):
        return ctypes.c_void_p(value.data.ptr)
    if isinstance(value, np.generic):
        return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
    kinds = {bool: ctypes.c_bool, int: ctypes.c_longlong, float: ctypes.c_double}
    if type(value) not in kinds:
        raise TypeError(f"a kernel takes arrays, None, bool, int and float; got {value!r}")
    return kinds[type(value)](value)


@functools.cache
def build(text: str, dtype: str) -> Any:
    """The kernels of a source for numbers of this dtype as a library."""
    names = re.findall(r"^KERNEL(?: __launch_bounds__\([^)]*\))? (\w+)\(", text, re.MULTILINE)
    starts = [f"STARTED_BY(shim_{name}, {name})" for name in names]
    whole = "\n".join([f"#define T {dtype}", '#line 1 "kernel.cu"', text, *starts])
    folders = (HEADER.parent.glob("*.h"), Path(_nvrtc.FOLDER).glob("*.cuh"))
    headers = b"".join(p.read_bytes() for f in folders for p in sorted(f))
    digest = hashlib.sha256(whole.encode() + headers + " ".join(FLAGS).encode()).hexdigest()[:24]
    return ctypes.CDLL(str(_compiled(whole, digest)))


def _compiled(whole: str, digest: str) -> Path:
    """The compiled library, from where compiled kernels are kept (or temporary files), or made."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    root = os.environ.get(VARIABLE) or tempfile.gettempdir()
    folder = Path(root) / f"tinygrad_ish-shim-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        made = folder / f"{digest}.{os.getpid()}.tmp"
        command = [
            *COMPILER,
            *FLAGS,
            f"-I{_nvrtc.FOLDER}",
            f"-I{HEADER.parent}",
            "-include",
            str(HEADER),
            "-x",
            "c++",
            "-",
            "-o",
            str(made),
        ]
        done = subprocess.run(command, input=whole, text=True, capture_output=True, check=False)
        if done.returncode:
            raise KernelError(f"the kernels do not compile:\n{done.stderr}")
        made.replace(library)
    return library
