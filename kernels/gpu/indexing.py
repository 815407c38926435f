"""Numbers taken by an index, and their gradients.

An index outside -n..n-1 cannot raise, since that would need a look at the data: the forward
kernels give NaN for it, and the gradients leave it out. The gradients add up in the order of the
index, by no atomic additions, so their bits are the same every time; CuPy's are not. The reference
serves integers, other strides, and ``gather`` along an axis other than the last.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import reference
from ..reference import Array, namespace, wider
from ._arrays import compilable, deliver, destination
from ._launch import blocks_for, launch

__all__ = ["gather", "gather_backward", "index_select", "index_select_backward"]

THREADS = 256  # of a block
MOST = 2**31  # elements, rows and warps are counted in 32 bits
SPAN = 2048  # keys that a block sorts in shared memory: SPAN of cu/indexing.cu
CHUNK = 32  # sorted keys for one warp


def _is_index(index: Array) -> bool:
    return bool(index.dtype == np.int64 and index.flags.c_contiguous)


def index_select(x: Array, index: Array, axis: int, out: Array | None = None) -> Array:
    """x's slices along ``axis`` at the int64 positions ``index`` (any shape).

    The shape is x's with axis replaced by index's. A position outside -n..n-1 gives NaN.
    """
    if not 0 <= axis < x.ndim or not (compilable(x) and _is_index(index)):
        return reference.index_select(x, index, axis, out)
    outer, n, d = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    m = index.size
    if not outer * m * d > 0 or outer * m >= MOST:
        return reference.index_select(x, index, axis, out)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    y = destination(out, shape, x.dtype, x, index)
    pack = 16 // x.dtype.itemsize
    lanes = min(1 << (-(-d // (2 * pack)) - 1).bit_length(), 32)  # two packs or more for each
    blocks = blocks_for(outer * m, THREADS // lanes)
    args = (x, index, y, outer, n, m, d, lanes)
    launch("indexing", "select_rows", x.dtype, blocks, THREADS, args)
    return deliver(y, out)


def index_select_backward(
    g: Array, index: Array, axis: int, shape: tuple[int, ...], out: Array | None = None
) -> Array:
    """Zeros of ``shape`` to which g's slices are added at ``index``, in its order; repeats add up.
    A position outside -n..n-1 adds to nothing."""
    fits = 0 <= axis < len(shape) and compilable(g) and _is_index(index)
    if not fits or g.shape != (*shape[:axis], *index.shape, *shape[axis + 1 :]):
        return reference.index_select_backward(g, index, axis, shape, out)
    outer, n, d = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    m, pack = index.size, 16 // g.dtype.itemsize
    chunks, tiles = -(-m // CHUNK), -(-d // (32 * pack))
    if max(m, n, outer * chunks * tiles) >= MOST:
        return reference.index_select_backward(g, index, axis, shape, out)
    y = destination(out, shape, g.dtype, g, index)
    y[...] = 0
    if outer * m * d:
        keys = _sorted_keys(index, n, g.dtype)
        part = namespace(g).empty(outer * chunks * 2 * d, wider(g.dtype))
        work = outer * chunks * tiles
        args = (keys, g, part, y, outer, m, n, d, chunks)
        launch("indexing", "sum_runs", g.dtype, -(-work // (THREADS // 32)), THREADS, args)
        if chunks > 1:
            rest = (keys, part, y, m, n, d, chunks)
            launch("indexing", "join_runs", g.dtype, work, THREADS, rest)
    return deliver(y, out)


def _sorted_keys(index: Array, n: int, dtype: Any) -> Array:
    """The numbers index · 2³² + place in order, so equal ones in that of their places; an index
    outside counts as n. Sorted by as many launches as the size asks for: 1 up to SPAN."""
    size = max(1 << (index.size - 1).bit_length(), 2)
    keys = namespace(index).empty(size, np.uint64)
    spans, pairs = -(-size // SPAN), -(-size // (2 * THREADS))

    def span(source: Array | None, first: int, last: int) -> None:
        args = (source, keys, index.size, n, size, first, last)
        launch("indexing", "sort_span", dtype, spans, THREADS, args)

    span(index, 2, min(size, SPAN))
    stage = 2 * SPAN
    while stage <= size:
        distance = stage // 2
        while distance >= SPAN:
            launch("indexing", "sort_step", dtype, pairs, THREADS, (keys, size, stage, distance))
            distance //= 2
        span(None, stage, stage)
        stage *= 2
    return keys


def gather(x: Array, index: Array, axis: int, out: Array | None = None) -> Array:
    """x[…, index[i, j], …] along ``axis``; index has x's shape but for that axis. A position
    outside -n..n-1 gives NaN."""
    if not (compilable(x) and _along_last(x.shape, index, axis) and index.size):
        return reference.gather(x, index, axis, out)
    n, k = x.shape[-1], index.shape[-1]
    y = destination(out, index.shape, x.dtype, x, index)
    blocks = blocks_for(index.size, THREADS)
    args = (x, index, y, index.size // k, n, k)
    launch("indexing", "gather", x.dtype, blocks, THREADS, args)
    return deliver(y, out)


def gather_backward(
    g: Array, index: Array, axis: int, shape: tuple[int, ...], out: Array | None = None
) -> Array:
    """Zeros of ``shape`` to which g is added at ``index`` along ``axis``, in its order; repeats add
    up. A position outside -n..n-1 adds to nothing."""
    size = math.prod(shape)
    fits = compilable(g) and g.shape == index.shape and _along_last(shape, index, axis)
    if not fits or not 0 < size < MOST:
        return reference.gather_backward(g, index, axis, shape, out)
    n = shape[-1]
    y = destination(out, shape, g.dtype, g, index)
    units = size // n * -(-n // (16 // g.dtype.itemsize))
    blocks = blocks_for(units, THREADS)
    args = (g, index, y, size // n, n, index.shape[-1])
    launch("indexing", "gather_backward", g.dtype, blocks, THREADS, args)
    return deliver(y, out)


def _along_last(shape: tuple[int, ...], index: Array, axis: int) -> bool:
    """Whether index takes from the last axis of an array of this shape, and is as the kernels take
    it."""
    ndim = len(shape)
    alike = index.ndim == ndim > 0 and index.shape[:-1] == shape[:-1] and index.size < MOST
    return alike and axis in (-1, ndim - 1) and _is_index(index)
