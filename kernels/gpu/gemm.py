"""Matrix products of 16-bit numbers on tensor cores, written out to be read and changed:
``cu/gemm_mma.cu`` for GPUs since Ampere, ``cu/gemm_wgmma.cu`` for Hopper. docs/kernels.md draws
them. The engine's own products do not come from here.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from ..reference import Array, namespace
from . import _launch
from ._arrays import address, deliver, destination

DTYPES = {"float16": 6, "bfloat16": 9}  # their numbers among CUtensorMapDataType
MOST = 1 << 30  # the kernels count rows and columns in 32 bits

# What the constants in the .cu files come to.
MMA_TILE, MMA_SHARED = (128, 128), 3 * (128 * 64 + 64 * 128) * 2
WGMMA_TILE, WGMMA_SHARED = (128, 256), 4 * (128 * 64 + 64 * 256) * 2 + 2 * 4 * 8
ALIGN = 1024  # more, as a stage begins at a multiple of 1024


def gemm(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (M, K) @ b (K, N) → (M, N), all float16 or all bfloat16, with sums in float32.

    K and N are multiples of 8. Any strides are accepted: what is not C-contiguous is copied. Raises
    TypeError for other dtypes, ValueError for other shapes and for a GPU older than Ampere.
    """
    kernel = gemm_wgmma if _launch.device.arch == "sm_90a" else gemm_mma
    return kernel(a, b, out)


def gemm_mma(a: Array, b: Array, out: Array | None = None) -> Array:
    """``gemm`` by mma.sync and cp.async, for compute capability 8.0 and newer."""
    if int(_launch.device.arch.removeprefix("sm_").rstrip("a")) < 80:
        raise ValueError(
            f"gemm needs a GPU of compute capability 8.0 (Ampere) or newer, this one is "
            f"{_launch.device.arch}: use matmul"
        )
    a, b, c = _prepared(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    if k and c.size:
        grid = -(-m // MMA_TILE[0]) * -(-n // MMA_TILE[1])
        args = (a, b, c, m, n, k)
        _launch.launch("gemm_mma", "gemm_mma", a.dtype, grid, 256, args, MMA_SHARED + ALIGN)
    return deliver(c, out)


def gemm_wgmma(a: Array, b: Array, out: Array | None = None) -> Array:
    """``gemm`` by wgmma and TMA, for compute capability 9.0 (H100, H200)."""
    if _launch.device.arch != "sm_90a":
        raise ValueError(
            f"gemm_wgmma needs a GPU of compute capability 9.0 (H100, H200), this one is "
            f"{_launch.device.arch}: use gemm"
        )
    a, b, c = _prepared(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    if k and c.size:
        tiles = -(-m // WGMMA_TILE[0]) * -(-n // WGMMA_TILE[1])
        grid = min(tiles, _launch.device.multiprocessors)
        maps = [
            _tensor_map(address(x), x.dtype.name, *x.shape, rows) for x, rows in ((a, 128), (b, 64))
        ]
        args = (*maps, c, m, n, k)
        _launch.launch("gemm_wgmma", "gemm_wgmma", a.dtype, grid, 288, args, WGMMA_SHARED + ALIGN)
    return deliver(c, out)


def _prepared(a: Array, b: Array, out: Array | None) -> tuple[Array, Array, Array]:
    """The operands and a destination, contiguous and aligned; zeros there if nothing is summed."""
    if a.dtype.name not in DTYPES or b.dtype != a.dtype:
        raise TypeError(
            f"gemm: expected two arrays of float16 or two of bfloat16, got {a.dtype.name} and "
            f"{b.dtype.name}: cast them"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"gemm: expected a (M, K) and b (K, N), got {a.shape} and {b.shape}")
    (m, k), n = a.shape, b.shape[1]
    if k % 8 or n % 8:
        raise ValueError(
            f"gemm: K and N must be multiples of 8, as memory is copied 16 bytes at a time; got "
            f"K = {k}, N = {n}: pad with zeros, or use matmul"
        )
    if max(m, k, n) > MOST:
        raise ValueError(f"gemm: expected at most 2**30 rows and columns, got {a.shape}, {b.shape}")
    c = destination(out, (m, n), a.dtype, a, b)
    c = c if _aligned(c) else namespace(a).empty(c.shape, c.dtype)
    if k == 0:
        c[...] = 0
    return _copied(a), _copied(b), c


def _copied(x: Array) -> Array:
    """x, or a copy that is contiguous and aligned."""
    return x if x.flags.c_contiguous and _aligned(x) else x.copy(order="C")


def _aligned(x: Array) -> bool:
    return address(x) % 16 == 0


@functools.cache
def _driver() -> Any:
    """CUDA's driver; it is there where CuPy runs."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ctypes.CDLL("nvcuda.dll")


@functools.lru_cache(256)
def _tensor_map(address: int, dtype: str, rows: int, columns: int, box_rows: int) -> bytes:
    """A CUtensorMap: what the copy engine knows of a row-major matrix, of which it copies boxes of
    ``box_rows`` by 64 columns, swizzled. Dimensions are given innermost first.

    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html
    """
    room = (ctypes.c_uint64 * 32)()
    aligned = ctypes.addressof(room) + -ctypes.addressof(room) % 128
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned),
        DTYPES[dtype],
        2,  # dimensions
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(columns, rows),
        (ctypes.c_uint64 * 1)(columns * 2),  # bytes from row to row
        (ctypes.c_uint32 * 2)(64, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),  # every element of every row
        0,  # CU_TENSOR_MAP_INTERLEAVE_NONE
        3,  # CU_TENSOR_MAP_SWIZZLE_128B
        2,  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B
        0,  # CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE: zeros for what is outside
    )
    if code:
        raise RuntimeError(
            f"cuTensorMapEncodeTiled gave error {code} for a matrix of {rows} x {columns} {dtype} "
            f"at {address:#x}"
        )
    return ctypes.string_at(aligned, 128)
