"""cuBLAS on the CPU, in place of ``kernels.gpu._blas.library``: matrices by address, column after
column, as cuBLAS's documentation has them. A call that breaks a rule of cuBLAS or of ours raises.

Arguments pass through ctypes, so that what is declared of the functions is used too.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinygrad_ish.kernels.gpu import _blas, _blaslt

# cudaDataType_t of library_types.h, and with which cublasComputeType_t (by name) each is allowed in
# cublasGemmEx: https://docs.nvidia.com/cuda/cublas/#cublasgemmex
DATA_TYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
COMPUTE_TYPES = {68: "32F", 70: "64F", 77: "32F_FAST_TF32"}
ALLOWED = {
    "float16": {"32F"},
    "bfloat16": {"32F"},
    "float32": {"32F", "32F_FAST_TF32"},
    "float64": {"64F"},
}
INVALID_VALUE, NOT_SUPPORTED = 7, 15


class BrokenRule(AssertionError):
    """A call that cuBLAS does not define, or that we must not make."""


class Stream:
    """A queue of the GPU; ``ptr`` is its address."""

    def __init__(self, ptr: int = 0) -> None:
        self.ptr = ptr
        self.capturing = False

    def is_capturing(self) -> bool:
        return self.capturing


class Memory:
    """Bytes of the GPU, from a multiple of 256."""

    def __init__(self, size: int) -> None:
        self._bytes = np.empty(size + 256, np.uint8)
        self.ptr = self._bytes.ctypes.data + -self._bytes.ctypes.data % 256


class _Handle:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.stream: int | None = None
        self.workspace = 0
        self.math_mode = 0


class FakeBlas:
    """cuBLAS's functions. ``record(action)``, if given, decides when a product is computed;
    ``stream()`` and ``memory(size)`` are as in ``_blas.Cublas``."""

    def __init__(
        self,
        record: Callable[[Callable[[], None]], None] | None = None,
        stream: Callable[[], Any] | None = None,
        memory: Callable[[int], Any] = Memory,
    ) -> None:
        self.current = Stream()
        self.stream = stream or (lambda: self.current)
        self.memory = memory
        self.called: list[str] = []
        self._record = record or (lambda action: action())
        self._handles: dict[int, _Handle] = {}
        self._descriptors: dict[int, dict[Any, int]] = {}  # of cuBLASLt: fields and attributes

    def __getattr__(self, name: str) -> Any:
        """A function of the library, reached through ctypes."""
        body, types = getattr(type(self), f"_{name}", None), _blas.ARGUMENTS.get(name)
        if body is None or types is None:
            raise AttributeError(f"cuBLAS has no {name}, or it is not declared")
        raised: list[BaseException] = []

        def run(*args: Any) -> int:
            try:
                return int(body(self, *args) or 0)
            except BaseException as error:  # ctypes would print it and go on
                raised.append(error)
                return -1

        function = ctypes.CFUNCTYPE(ctypes.c_int, *types)(run)

        def call(*args: Any) -> int:
            self.called.append(name)
            status = function(*args)
            if raised:
                raise raised.pop()
            return status

        setattr(self, name, call)
        return call

    # --- the handle ------------------------------------------------------------------------------

    def _cublasCreate_v2(self, place: int) -> None:
        number = 0x1000 + len(self._handles)
        self._handles[number] = _Handle()
        ctypes.c_void_p.from_address(place).value = number

    def _of(self, number: int) -> _Handle:
        if number not in self._handles:
            raise BrokenRule(f"{number} is no handle")
        handle = self._handles[number]
        if handle.thread != threading.get_ident():
            raise BrokenRule("a handle of another thread")
        return handle

    def _cublasSetMathMode(self, number: int, mode: int) -> None:
        self._of(number).math_mode = mode

    def _cublasSetStream_v2(self, number: int, stream: int | None) -> None:
        handle = self._of(number)
        handle.stream, handle.workspace = stream or 0, 0  # back to the one of its own

    def _cublasSetWorkspace_v2(self, number: int, workspace: int, size: int) -> int:
        if workspace % 256:
            return INVALID_VALUE
        if size < 32 << 20:
            raise BrokenRule(f"a workspace of {size} bytes: Hopper wants 32 MiB")
        self._of(number).workspace = workspace
        return 0

    # --- products --------------------------------------------------------------------------------

    def _cublasGemmEx_64(self, *args: Any) -> int:
        head, a, b, beta, c, (compute, algorithm) = _split(args, 7, 3, 3, 1, 3, 2)
        return self._product(*head, *a, 0, *b, 0, *beta, *c, 0, 1, compute, algorithm)

    def _cublasGemmStridedBatchedEx_64(self, *args: Any) -> int:
        return self._product(*args)

    def _product(
        self, number: int, op_a: int, op_b: int, m: int, n: int, k: int, alpha: int,
        a: int, type_a: int, lda: int, stride_a: int, b: int, type_b: int, ldb: int, stride_b: int,
        beta: int, c: int, type_c: int, ldc: int, stride_c: int, count: int,
        compute: int, algorithm: int,
    ) -> int:  # fmt: skip
        handle = self._of(number)
        if handle.stream != (self.stream().ptr or 0):
            raise BrokenRule("the handle is set to another stream than the current one")
        if not handle.workspace:
            raise BrokenRule("the stream was set after the workspace, which so is the default one")
        if handle.math_mode != 16:
            raise BrokenRule("float16 may be added up in float16")
        if op_a not in (0, 1) or op_b not in (0, 1) or min(m, n, k, count) < 1:
            return INVALID_VALUE
        if lda < (k if op_a else m) or ldb < (n if op_b else k) or ldc < m:
            return INVALID_VALUE
        if algorithm != -1:
            raise BrokenRule(f"algorithm {algorithm}")
        dtype, computed = _types((type_a, type_b, type_c), compute)
        _check_scalars(alpha, beta, computed)
        left = matrices(a, dtype, *((k, m) if op_a else (m, k)), lda, stride_a, count)
        right = matrices(b, dtype, *((n, k) if op_b else (k, n)), ldb, stride_b, count)
        result = matrices(c, dtype, m, n, ldc, stride_c, count)
        if count > 1 and stride_c < ldc * n:
            raise BrokenRule("the results of a batch overlap")
        left = left.swapaxes(1, 2) if op_a else left
        right = right.swapaxes(1, 2) if op_b else right
        self._compute(left, right, result, computed, lambda y: y)
        return 0

    def _compute(
        self, left: np.ndarray, right: np.ndarray, result: np.ndarray, computed: str, finish: Any
    ) -> None:
        if any(np.may_share_memory(result, x) for x in (left, right)):
            raise BrokenRule("the result overlaps a factor")

        def multiply() -> None:
            with np.errstate(all="ignore"):
                product = np.matmul(*[_as_computed(x, computed) for x in (left, right)])
                result[...] = finish(product).astype(result.dtype)

        self._record(multiply)

    # --- cuBLASLt --------------------------------------------------------------------------------

    def _make(self, place: int, **fields: int) -> None:
        number = 0x2000 + len(self._descriptors)
        self._descriptors[number] = dict(fields)
        ctypes.c_void_p.from_address(place).value = number

    def _cublasLtMatmulDescCreate(self, place: int, compute: int, scalars: int) -> None:
        self._make(place, compute=compute, scalars=scalars)

    def _cublasLtMatrixLayoutCreate(
        self, place: int, kind: int, rows: int, columns: int, leading: int
    ) -> int:
        if leading < rows:
            return INVALID_VALUE
        self._make(place, kind=kind, rows=rows, columns=columns, leading=leading)
        return 0

    def _cublasLtMatmulPreferenceCreate(self, place: int) -> None:
        self._make(place)

    def _cublasLtMatmulDescSetAttribute(
        self, number: int, attribute: int, value: int, size: int
    ) -> int:
        if size != {3: 4, 4: 4, 7: 4, 8: 8}[attribute]:
            return INVALID_VALUE
        kind = ctypes.c_uint64 if size == 8 else ctypes.c_uint32
        self._descriptors[number][attribute] = kind.from_address(value).value
        return 0

    def _cublasLtMatmulPreferenceSetAttribute(
        self, number: int, attribute: int, value: int, size: int
    ) -> int:
        if size != {1: 8, 5: 4, 6: 4, 7: 4, 8: 4}[attribute]:
            return INVALID_VALUE
        kind = ctypes.c_uint64 if size == 8 else ctypes.c_uint32
        self._descriptors[number][attribute] = kind.from_address(value).value
        return 0

    def _cublasLtMatmulAlgoGetHeuristic(
        self, number: int, operation: int, a: int, b: int, c: int, d: int, preference: int,
        asked: int, results: int, count: int,
    ) -> int:  # fmt: skip
        self._of(number)
        if self.stream().is_capturing():
            raise BrokenRule("an algorithm is searched for while a graph is captured")
        wanted = self._descriptors[preference]
        if wanted != {1: 32 << 20, 5: 16, 6: 16, 7: 16, 8: 16} or asked != 1:
            raise BrokenRule(f"asked for {asked} algorithms with {wanted}")
        if self._descriptors[operation]["compute"] == 70:
            return NOT_SUPPORTED  # to have such a case
        found = _blaslt.Heuristic.from_address(results)
        found.algorithm[0], found.workspace, found.state = operation, 1 << 20, 0
        ctypes.c_int.from_address(count).value = 1
        return 0

    def _cublasLtMatmul(
        self, number: int, operation: int, alpha: int, a: int, of_a: int, b: int, of_b: int,
        beta: int, c: int, of_c: int, d: int, of_d: int, algorithm: int,
        workspace: int, size: int, stream: int | None,
    ) -> int:  # fmt: skip
        handle, told = self._of(number), self._descriptors[operation]
        if (stream or 0) != (self.stream().ptr or 0):
            raise BrokenRule("not the current stream")
        if workspace != handle.workspace or size < 1 << 20:
            raise BrokenRule("not the stream's workspace, or too little of it")
        if _blaslt.Heuristic.from_address(algorithm).algorithm[0] != operation:
            raise BrokenRule("an algorithm for another product")
        if c != d or of_c != of_d:
            raise BrokenRule("C is not D")
        layouts = [self._descriptors[x] for x in (of_a, of_b, of_d)]
        dtype, computed = _types(tuple(x["kind"] for x in layouts), told["compute"])
        _check_scalars(alpha, beta, computed)
        if any(x % 16 for x in (a, b, d, told[8])):
            raise BrokenRule("an array at no multiple of 16 bytes, as was promised")
        left, right, result = (
            matrices(at, dtype, x["rows"], x["columns"], x["leading"], 0, 1)
            for at, x in zip((a, b, d), layouts)
        )
        left = left.swapaxes(1, 2) if told[3] else left
        right = right.swapaxes(1, 2) if told[4] else right
        if (*left.shape[1:], right.shape[2]) != (result.shape[1], right.shape[1], result.shape[2]):
            return INVALID_VALUE
        bias = matrices(told[8], dtype, result.shape[1], 1, result.shape[1], 0, 1)
        finish = {4: lambda y: y + bias, 6: lambda y: np.maximum(y + bias, 0)}[told[7]]
        self._compute(left, right, result, computed, finish)
        return 0


def _types(kinds: tuple[int, ...], compute: int) -> tuple[str, str]:
    if set(kinds) - set(DATA_TYPES) or len(set(kinds)) > 1:
        raise BrokenRule(f"numbers of types {kinds}")
    dtype, computed = DATA_TYPES[kinds[0]], COMPUTE_TYPES[compute]
    if computed not in ALLOWED[dtype]:
        raise BrokenRule(f"{dtype} is not computed as {computed}")
    return dtype, computed


def _check_scalars(alpha: int, beta: int, computed: str) -> None:
    scalar = ctypes.c_double if computed == "64F" else ctypes.c_float
    if (scalar.from_address(alpha).value, scalar.from_address(beta).value) != (1, 0):
        raise BrokenRule("alpha and beta: not 1 and 0, or of another type")


def _split(args: tuple[Any, ...], *lengths: int) -> Iterator[tuple[Any, ...]]:
    for n in lengths:
        yield args[:n]
        args = args[n:]


def _as_computed(x: np.ndarray, computed: str) -> np.ndarray:
    x = x.astype(np.float64 if computed == "64F" else np.float32)
    if computed == "32F_FAST_TF32":  # 10 bits of the fraction, rounded
        x = ((x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)
    return x


def matrices(
    at: int, dtype: str, rows: int, columns: int, leading: int, stride: int, count: int
) -> np.ndarray:
    """The matrices (count, rows, columns) at an address, column after column."""
    kind = dtype_of(dtype)
    if at % kind.itemsize or not at:
        raise BrokenRule(f"{dtype} at the address {at:#x}")
    if stride < 0:
        raise BrokenRule(f"a batch that steps by {stride}")
    length = (count - 1) * stride + (columns - 1) * leading + rows
    there = (ctypes.c_char * (length * kind.itemsize)).from_address(at)
    flat = np.frombuffer(there, np.uint8).view(kind)
    size = kind.itemsize
    return np.lib.stride_tricks.as_strided(
        flat, (count, rows, columns), (stride * size, size, leading * size)
    )


def dtype_of(name: str) -> np.dtype:
    """The dtype of this name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@contextlib.contextmanager
def in_place_of_cublas() -> Iterator[FakeBlas]:
    """Let products be computed on the CPU, whatever arrays they get."""
    before, fake = _blas.library, FakeBlas()
    use(fake)
    try:
        yield fake
    finally:
        use(before)


def use(library: Any) -> None:
    """Let products be computed there from now on."""
    _blas.library = library
    _blas._handles.clear()
