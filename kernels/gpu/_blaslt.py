"""A linear layer in one kernel of cuBLASLt, which adds the bias and applies ReLU to the sums while
they are in registers. https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api

The numbers below are those of cublasLt.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

from ..reference import Array
from . import _blas
from ._arrays import address
from ._blas import COMPUTE_64F, SCALARS, TYPES, check, compute_type, factor

TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
RELU, BIAS = 2, 4  # cublasLtEpilogue_t
MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t
ALIGNMENT = 16


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and what it needs."""

    _fields_ = [
        ("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int),
        ("waves", ctypes.c_float), ("reserved", c_int * 4),
    ]  # fmt: skip


_ENUM = c_int
_SET = [c_void_p, _ENUM, c_void_p, c_size_t]
_blas.ARGUMENTS |= {
    "cublasLtMatmulDescCreate": [c_void_p, _ENUM, _ENUM],
    "cublasLtMatmulDescSetAttribute": _SET,
    "cublasLtMatrixLayoutCreate": [c_void_p, _ENUM, c_uint64, c_uint64, c_int64],
    "cublasLtMatmulPreferenceCreate": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    "cublasLtMatmulAlgoGetHeuristic": [c_void_p] * 7 + [c_int, c_void_p, c_void_p],
    "cublasLtMatmul": [c_void_p] * 14 + [c_size_t, c_void_p],
}


class Plan(NamedTuple):
    """How cuBLASLt is told of a product of one shape. It belongs to a thread's handle, and that
    thread alone uses it, as the bias is set anew for each call."""

    operation: c_void_p
    layouts: tuple[c_void_p, c_void_p, c_void_p]  # of w, x and y in cuBLAS's eyes
    algorithm: Any


def linear(x: Array, w: Array, b: Array, relu: bool, y: Array) -> bool:
    """y = x wᵀ + b, then ReLU, for C-contiguous b and y: whether it was done. It is not where
    cuBLASLt has no such kernel, or an array lies at no multiple of 16 bytes; and while a CUDA graph
    is captured, for a shape that it has not been asked for before."""
    right, left = factor(w.T), factor(x)
    arrays = (right.array, left.array, y)
    if x.size * w.size == 0 or any(address(a) % ALIGNMENT for a in (*arrays, b)):
        return False
    handle, stream = _blas.handle(), _blas.library.stream()
    blas = handle.on_current_stream()
    compute = compute_type(y.dtype)
    shape = (*y.shape, x.shape[1], *right[1:], *left[1:])
    key = (y.dtype.name, compute, relu, shape)
    if key not in handle.plans:
        if stream.is_capturing():  # the search may ask the GPU for what a capture forbids
            return False
        handle.plans[key] = _plan(blas, y.dtype.name, compute, relu, shape, b)
    plan = handle.plans[key]
    if plan is None:
        return False
    _set("MatmulDesc", plan.operation, BIAS_POINTER, c_void_p(address(b)))
    (one, zero), (of_w, of_x, of_y) = SCALARS[compute], plan.layouts
    status = _blas.library.cublasLtMatmul(
        blas, plan.operation, one, address(arrays[0]), of_w, address(arrays[1]), of_x, zero,
        address(y), of_y, address(y), of_y, byref(plan.algorithm), handle.workspace.ptr,
        _blas.WORKSPACE, stream.ptr,
    )  # fmt: skip
    check(status, f"linear of {y.dtype.name}{list(x.shape)} by cuBLASLt")
    return True


def _plan(
    blas: Any, dtype: str, compute: int, relu: bool, shape: tuple[int, ...], b: Array
) -> Plan | None:
    """The best algorithm that cuBLASLt knows for y (n, k) from x (n, d); None if it knows none."""
    n, k, d, w_transposed, w_leading, x_transposed, x_leading = shape
    kind = TYPES[dtype]
    operation = _make(
        "MatmulDesc", compute, TYPES["float64" if compute == COMPUTE_64F else "float32"]
    )
    for attribute, value in (
        (TRANSA, w_transposed), (TRANSB, x_transposed), (EPILOGUE, BIAS + (RELU if relu else 0))
    ):  # fmt: skip
        _set("MatmulDesc", operation, attribute, c_uint32(value))
    _set("MatmulDesc", operation, BIAS_POINTER, c_void_p(address(b)))  # for its alignment
    layouts = (
        _make("MatrixLayout", kind, *((d, k) if w_transposed else (k, d)), w_leading),
        _make("MatrixLayout", kind, *((n, d) if x_transposed else (d, n)), x_leading),
        _make("MatrixLayout", kind, k, n, k),
    )
    preference = _make("MatmulPreference")
    _set("MatmulPreference", preference, MAX_WORKSPACE_BYTES, c_uint64(_blas.WORKSPACE))
    for attribute in MIN_ALIGNMENTS:
        _set("MatmulPreference", preference, attribute, c_uint32(ALIGNMENT))
    found, count = Heuristic(), c_int()
    status = _blas.library.cublasLtMatmulAlgoGetHeuristic(
        blas, operation, *layouts, layouts[2], preference, 1, byref(found), byref(count)
    )
    if status or count.value == 0 or found.state:
        return None
    return Plan(operation, layouts, found.algorithm)


def _make(what: str, *args: Any) -> c_void_p:
    """A new descriptor of cuBLASLt's."""
    made = c_void_p()
    check(getattr(_blas.library, f"cublasLt{what}Create")(byref(made), *args), f"cublasLt{what}")
    return made


def _set(what: str, descriptor: c_void_p, attribute: int, value: Any) -> None:
    """Set an attribute of a descriptor."""
    function = getattr(_blas.library, f"cublasLt{what}SetAttribute")
    status = function(descriptor, attribute, byref(value), ctypes.sizeof(value))
    check(status, f"cublasLt{what}SetAttribute of {attribute}")
