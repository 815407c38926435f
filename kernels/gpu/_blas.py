"""Matrix products by NVIDIA's cuBLAS, called through ctypes.

Through CuPy it cannot be captured in a CUDA graph: CuPy refuses to set cuBLAS's stream while it
captures. Here each thread has a handle and each stream a workspace of its own. So cuBLAS gives the
same bits for the same shapes on the same GPU and version, however many streams are at work
(https://docs.nvidia.com/cuda/cublas, "Results reproducibility").

The numbers below are those of cublas_api.h and library_types.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import itertools
import math
import os
import sys
import threading
import weakref
from ctypes import byref, c_double, c_float, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

from .. import get_float32_matmul_precision
from ..reference import Array, namespace
from ._arrays import address
from ._diagnosis import INSTALL

# What cuBLAS's documentation recommends for Hopper; older GPUs want 4 MiB.
WORKSPACE = 32 << 20
# Products of a batch that cuBLAS cannot step through are called one by one, so many of them.
MOST_CALLS = 16

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType: CUDA_R_32F, …
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77  # cublasComputeType_t
OP_N, OP_T = 0, 1  # cublasOperation_t
GEMM_DEFAULT = -1  # cublasGemmAlgo_t: by cuBLAS's heuristics
DISALLOW_REDUCED_PRECISION_REDUCTION = 16  # cublasMath_t: what float16 adds up, it adds in float32
STATUS = {
    1: "NOT_INITIALIZED (is the GPU's memory full?)", 3: "ALLOC_FAILED", 7: "INVALID_VALUE",
    8: "ARCH_MISMATCH", 11: "MAPPING_ERROR", 13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip

_ENUM = c_int
_GEMM = [c_void_p, _ENUM, _ENUM, c_int64, c_int64, c_int64, c_void_p]
_MATRIX = [c_void_p, _ENUM, c_int64]
ARGUMENTS: dict[str, list[Any]] = {
    "cublasCreate_v2": [c_void_p],
    "cublasSetMathMode": [c_void_p, _ENUM],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasGemmEx_64": [*_GEMM, *_MATRIX, *_MATRIX, c_void_p, *_MATRIX, _ENUM, _ENUM],
    "cublasGemmStridedBatchedEx_64": [
        *_GEMM, *_MATRIX, c_int64, *_MATRIX, c_int64, c_void_p, *_MATRIX, c_int64,
        c_int64, _ENUM, _ENUM,
    ],
}  # fmt: skip


class BlasError(ValueError):
    """cuBLAS is not there, or did not take a call."""


@functools.cache
def load(name: str = "cublas") -> Any:
    """A library of cuBLAS from its package, else from the CUDA toolkit of the machine."""
    for version, folder in itertools.product((13, 12), sys.path):
        pattern = os.path.join(folder, "nvidia", "*", "lib", f"lib{name}.so.{version}")
        for path in glob.glob(pattern):
            return ctypes.CDLL(path)
    for file in (f"lib{name}.so.13", f"lib{name}.so.12", f"lib{name}.so", f"{name}64_13.dll"):
        try:
            return ctypes.CDLL(file)
        except OSError:
            continue
    raise BlasError(f"cuBLAS, NVIDIA's matrix products, was not found: {INSTALL}")


class Cublas:
    """cuBLAS's functions, and what they work with: CuPy's current stream and memory."""

    def __getattr__(self, name: str) -> Any:
        """Declare a function at its first use, and keep it."""
        function = getattr(load("cublasLt" if name.startswith("cublasLt") else "cublas"), name)
        function.argtypes, function.restype = ARGUMENTS[name], _ENUM
        setattr(self, name, function)
        return function

    @staticmethod
    def stream() -> Any:
        """The current stream, whose ``ptr`` is its address; the same object as long as it lives."""
        import cupy

        return cupy.cuda.get_current_stream()

    @staticmethod
    def memory(size: int) -> Any:
        """So many bytes, from ``ptr`` on, as long as the object lives."""
        import cupy

        return cupy.cuda.alloc(size)


library: Any = Cublas()  # tests put one in its place that computes on the CPU


def check(status: int, what: str) -> None:
    """Raise BlasError unless a call has succeeded."""
    if status:
        raise BlasError(f"{what}: cuBLAS answers {STATUS.get(status, status)}")


class Handle:
    """A thread's cuBLAS. It works on the stream that is current, with that stream's workspace."""

    def __init__(self) -> None:
        self.handle = c_void_p()
        check(library.cublasCreate_v2(byref(self.handle)), "cublasCreate")
        mode = library.cublasSetMathMode(self.handle, DISALLOW_REDUCED_PRECISION_REDUCTION)
        check(mode, "cublasSetMathMode")
        self.workspace: Any = None
        self.plans: dict[Any, Any] = {}  # _blaslt's
        self._stream: Any = lambda: None
        self._workspaces: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def on_current_stream(self) -> Any:
        """The handle, set to the current stream."""
        stream = library.stream()
        if self._stream() is not stream:
            if stream not in self._workspaces:
                self._workspaces[stream] = library.memory(WORKSPACE)
            self.workspace = self._workspaces[stream]
            # In this order: setting the stream takes the workspace away.
            check(library.cublasSetStream_v2(self.handle, stream.ptr), "cublasSetStream")
            set_ = library.cublasSetWorkspace_v2(self.handle, self.workspace.ptr, WORKSPACE)
            check(set_, "cublasSetWorkspace")
            self._stream = weakref.ref(stream)
        return self.handle


_handles: dict[int, Handle] = {}  # a thread that begins may get the number of one that has ended


def handle() -> Handle:
    """This thread's handle."""
    number = threading.get_ident()
    found = _handles.get(number)
    if found is None:
        if library.stream().is_capturing():
            raise BlasError(
                "cuBLAS starts with a thread's first matrix product, which no CUDA graph can "
                "capture: compute one before the capture begins"
            )
        found = _handles[number] = Handle()
    return found


class Factor(NamedTuple):
    """Matrices as cuBLAS reads them where they lie. It counts down the columns, so that our rows
    are its columns."""

    array: Array
    transposed: bool  # our columns are its columns
    leading: int  # from the start of one of its columns to the next, in elements


def factor(x: Array) -> Factor:
    """The matrices x (…, R, C), copied if neither their rows nor their columns lie together."""
    found = _layout(x)
    if found is None:
        x = namespace(x).ascontiguousarray(x)
        found = False, max(1, x.shape[-1])
    return Factor(x, *found)


def _layout(x: Array) -> tuple[bool, int] | None:
    rows, columns = x.shape[-2:]
    if any(s < 0 for s in x.strides):
        return None
    down, along = (s // x.itemsize for s in x.strides[-2:])
    if along == 1 or columns == 1:
        leading = down if rows > 1 else columns
        if leading >= columns:
            return False, leading
    if down == 1 or rows == 1:
        leading = along if columns > 1 else rows
        if leading >= rows:
            return True, leading
    return None


def multiply(a: Array, b: Array, y: Array) -> None:
    """y = a b, for a (…, M, K), b (…, K, N) and C-contiguous y (…, M, N), of one floating dtype.

    The axes in front broadcast; factors that broadcast or are transposed are not copied.
    """
    if y.size == 0:
        return
    if a.shape[-1] == 0:
        y.fill(0)
        return
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:  # one product of all the rows
        a, y = a.reshape(-1, a.shape[-1]), y.reshape(-1, y.shape[-1])
    left, right = factor(a), factor(b)
    axes = _axes(left.array, right.array, y)
    if math.prod(n for n, *_ in axes) > MOST_CALLS * max([n for n, *_ in axes], default=1):
        left, right = (factor(namespace(a).ascontiguousarray(x.array)) for x in (left, right))
        axes = _axes(left.array, right.array, y)
    # cuBLAS steps along the longest axis, we along the others.
    batch = max(axes, default=(1, 0, 0, 0))
    if axes:
        axes.remove(batch)
    for steps in itertools.product(*[range(n) for n, *_ in axes]):
        at = [sum(i * axis[j] for i, axis in zip(steps, axes)) for j in (1, 2, 3)]
        _gemm(left, right, y, at, batch)


def _axes(a: Array, b: Array, y: Array) -> list[tuple[int, int, int, int]]:
    """The axes in front of the matrices as (length, steps in a, b and y), in elements; neighbours
    that are one longer axis are joined."""
    lead = y.shape[:-2]
    axes: list[tuple[int, int, int, int]] = []
    for n, *steps in zip(lead, *[_steps(x, len(lead)) for x in (a, b, y)]):
        if axes and all(outer == n * inner for outer, inner in zip(axes[-1][1:], steps)):
            axes[-1] = (axes[-1][0] * n, *steps)
        elif n > 1:
            axes.append((n, *steps))
    return axes


def _steps(x: Array, ndim: int) -> tuple[int, ...]:
    own = zip(x.shape[:-2], x.strides)
    steps = [0 if n == 1 else stride // x.itemsize for n, stride in own]
    return (*[0] * (ndim - len(steps)), *steps)


def compute_type(dtype: Any) -> int:
    """What cuBLAS multiplies and adds numbers of this dtype in."""
    if dtype.name == "float64":
        return COMPUTE_64F
    fast = dtype.name == "float32" and get_float32_matmul_precision() != "highest"
    return COMPUTE_32F_FAST_TF32 if fast else COMPUTE_32F


SCALARS = {  # 1 and 0, of the type that products are computed in
    kind: (byref(number(1)), byref(number(0)))
    for kind, number in (
        (COMPUTE_32F, c_float), (COMPUTE_32F_FAST_TF32, c_float), (COMPUTE_64F, c_double)
    )
}  # fmt: skip


def _gemm(a: Factor, b: Factor, y: Array, at: list[int], batch: tuple[int, int, int, int]) -> None:
    """The product of the matrices that lie ``at`` so many elements into a, b and y, and of those
    further along the batch. In cuBLAS's eyes all is transposed: yᵀ = bᵀ aᵀ."""
    (rows, columns), inner, size = y.shape[-2:], a.array.shape[-1], y.itemsize
    kind, compute = TYPES[y.dtype.name], compute_type(y.dtype)
    one, zero = SCALARS[compute]
    pa, pb, py = (address(x) + i * size for x, i in zip((a.array, b.array, y), at))
    operations = (OP_T if x.transposed else OP_N for x in (b, a))
    shape = (handle().on_current_stream(), *operations, columns, rows, inner)
    first, second = (pb, kind, b.leading), (pa, kind, a.leading)
    result = (py, kind, columns)
    count, along_a, along_b, along_y = batch
    if count == 1:
        status = library.cublasGemmEx_64(
            *shape, one, *first, *second, zero, *result, compute, GEMM_DEFAULT
        )
    else:
        status = library.cublasGemmStridedBatchedEx_64(
            *shape, one, *first, along_b, *second, along_a, zero, *result, along_y,
            count, compute, GEMM_DEFAULT,
        )  # fmt: skip
    if status:
        shapes = f"{y.dtype.name} ({rows}, {inner}) · ({inner}, {columns}), {count} times"
        check(status, f"matmul of {shapes}")
