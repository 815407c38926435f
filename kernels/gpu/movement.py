"""Numbers moved: copies of arrays with strides, casts, and arrays joined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import reference
from ..reference import Array, check_out, namespace
from ._arrays import address, deliver, destination
from ._launch import blocks_for, launch
from .elementwise import THREADS

__all__ = ["cast", "cat", "copy"]

KINDS = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
CARRIERS = {2: "float16", 4: "float32", 8: "float64"}  # that move any numbers of their size
MOST_ELEMENTS = 2**31  # of an array with strides
TILE = 32  # numbers along a side


def cast(x: Array, dtype: Any, out: Array | None = None) -> Array:
    """The values of x as ``dtype``, in new memory; float to int cuts towards zero.

    Beyond the range of an integer dtype, and for NaN, the result is any number. float64 becomes a
    float of 16 bits by way of float32, so it is rounded twice.
    """
    dtype = np.dtype(dtype)
    if not (x.dtype.name in KINDS and dtype.name in KINDS and x.flags.c_contiguous):
        return reference.cast(x, dtype, out)
    y = destination(out, x.shape, dtype, x, elementwise=True)
    blocks = blocks_for(x.size, THREADS * 16 // max(x.dtype.itemsize, dtype.itemsize))
    truth = dtype.name == "bool"
    args = (x, y, x.size, KINDS.index(x.dtype.name), truth)
    launch("casts", "cast", np.uint8 if truth else dtype, blocks, THREADS, args)
    return deliver(y, out)


# --- copies ----------------------------------------------------------------------------------


def copy(x: Array, out: Array | None = None) -> Array:
    """The same values in C-contiguous memory of their own; into ``out``, x broadcasts, and may
    overlap it."""
    y = _copied(x, out)
    return reference.copy(x, out) if y is None else y


def _copied(x: Array, out: Array | None) -> Array | None:
    """The copy by a kernel; None if it is not for one."""
    if x.dtype.itemsize not in CARRIERS or not 0 < x.size < MOST_ELEMENTS:
        return None
    if out is None and x.flags.c_contiguous:
        return None  # one call copies it all
    if out is not None and not _plain(x, out):
        return None
    dims = _collapsed(x)
    if dims is None:
        return None
    y = namespace(x).empty(x.shape, x.dtype) if out is None else out
    if len(dims) in (2, 3) and dims[-2][1] == 1:
        _transpose(x, y, dims)
    else:
        _copy_strided(x, y, dims)
    return y


def _plain(x: Array, out: Array) -> bool:
    """Whether ``out`` is contiguous memory elsewhere for just these numbers."""
    alike = out.shape == x.shape and out.dtype == x.dtype and out.flags.c_contiguous
    return bool(alike and not namespace(x).may_share_memory(x, out))


Dims = list[tuple[int, int]]  # (size, stride in elements), from the slowest on


def _collapsed(x: Array) -> Dims | None:
    """The dimensions of x, those that run on into each other as one; None if more than 4 are
    left, or strides are no whole elements."""
    dims: Dims = []
    for n, stride in zip(x.shape, x.strides, strict=True):
        if stride % x.dtype.itemsize:
            return None
        stride //= x.dtype.itemsize
        if n == 1:
            continue
        if dims and dims[-1][1] == n * stride:
            dims[-1] = (dims[-1][0] * n, stride)
        else:
            dims.append((n, stride))
    return dims if len(dims) <= 4 else None


def _transpose(x: Array, y: Array, dims: Dims) -> None:
    (n, apart), (rows, _), (columns, stride) = [(1, 0), *dims][-3:]
    tiles = n * -(-rows // TILE) * -(-columns // TILE)
    args = (x, y, rows, columns, stride, apart)
    launch("movement", "transpose", CARRIERS[x.dtype.itemsize], tiles, 256, args)


def _copy_strided(x: Array, y: Array, dims: Dims) -> None:
    pack = 16 // x.dtype.itemsize
    *rest, (n, last) = dims or [(1, 1)]
    packs = last == 1 and n % pack == 0 and all(stride % pack == 0 for _, stride in rest)
    if packs and (address(x) % 16 or address(y) % 16):
        packs = False
    if packs:
        dims = [*[(m, stride // pack) for m, stride in rest], (n // pack, 1)]
    dims = [(1, 0)] * (4 - len(dims)) + dims
    sizes, strides = zip(*dims, strict=True)
    blocks = blocks_for(math.prod(sizes), THREADS)
    args = (x, y, *sizes, *strides, packs)
    launch("movement", "copy_strided", CARRIERS[x.dtype.itemsize], blocks, THREADS, args)


def cat(arrays: tuple[Array, ...], axis: int, out: Array | None = None) -> Array:
    """The arrays joined along ``axis``; their other dimensions are equal.

    One copy for each: CuPy's own concatenation of many arrays cannot be captured.
    """
    first = arrays[0]
    others = {(x.dtype, x.shape[:axis], x.shape[axis + 1 :]) for x in arrays}
    if not 0 <= axis < first.ndim or len(others) > 1:
        return reference.cat(arrays, axis, out)
    sizes = [x.shape[axis] for x in arrays]
    shape = (*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :])
    if out is not None:
        check_out(out, shape, first.dtype, *arrays)
    y = namespace(first).empty(shape, first.dtype) if out is None else out
    for x, part in zip(arrays, _parts(sizes), strict=True):
        y[(slice(None),) * axis + (part,)] = x
    return y


def _parts(sizes: list[int]) -> Iterator[slice]:
    start = 0
    for n in sizes:
        yield slice(start, start + n)
        start += n
