"""Reductions over neighbouring axes of contiguous arrays: shapes collapse to (outer, n, inner),
with the sum over n.

Rows (inner 1) are done by some lanes of a warp, or a block; columns by blocks whose threads stand
side by side. Few long rows, or columns, are cut into chunks, whose results a second kernel
combines: into how many follows from the shape alone, so results do not depend on the GPU. The
reference serves axes that are not neighbours, other strides, integers and empty arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import reference
from ..reference import Array, namespace, wider
from ._arrays import compilable, deliver, destination
from ._launch import blocks_for, launch
from .elementwise import MOST_ELEMENTS, broadcast_place, launch_flat

__all__ = ["amax", "amin", "argmax", "argmin", "mean", "mean_backward", "sum", "sum_to"]

THREADS = 256  # of a block
SHORT = 1024  # rows up to here are for some lanes of a warp
CHUNK = 8192  # numbers of a long row for one block, or more
MOST_BLOCKS = 1024  # that the chunks of an array are meant for: they fill the largest GPU
LONGEST = 65536  # rows in which one warp looks for the largest number, unless there are many rows


def _axes(x: Array, axis: Any) -> tuple[int, ...] | None:
    """The axes, from 0 on; None where the reference shall say what is wrong with them."""
    given = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = {a + x.ndim if a < 0 else a for a in given}
    fits = len(axes) == len(given) and all(0 <= a < x.ndim for a in axes)
    return tuple(sorted(axes)) if fits else None


def _collapsed(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(outer, n, inner), n the product of these axes; None if others lie between them."""
    summed = [a for a in axes if shape[a] != 1]
    if not summed:
        return math.prod(shape), 1, 1
    first, last = summed[0], summed[-1] + 1
    n = math.prod(shape[first:last])
    if n != math.prod([shape[a] for a in summed]):
        return None
    return math.prod(shape[:first]), n, math.prod(shape[last:])


def _reduced(
    kind: str,
    x: Array,
    axes: tuple[int, ...] | None,
    shape: tuple[int, ...],
    correction: int | None,
    out: Array | None,
) -> Array | None:
    """Σ x, or another ``kind`` of combination, over these axes, as an array of this shape; None if
    it is not for the kernels. With a correction, divided by n - correction."""
    sizes = _collapsed(x.shape, axes) if axes is not None and x.size and compilable(x) else None
    if sizes is None:
        return None
    y = destination(out, shape, x.dtype, x)
    divisor = 1.0 if correction is None else float(max(sizes[1] - correction, 0))
    _start(kind, x, y, sizes, divisor)
    return deliver(y, out)


def _start(kind: str, x: Array, y: Array, sizes: tuple[int, int, int], divisor: float) -> None:
    outer, n, inner = sizes
    pack = 16 // x.dtype.itemsize
    if inner == 1:
        packs = outer == 1 or n % pack == 0
        if n <= SHORT:
            lanes = _power_of_two(-(-n // (4 * pack if packs else 4)), 32)
            blocks = blocks_for(outer, THREADS // lanes)
            args = (x, y, outer, n, lanes, packs, divisor)
            launch("reductions", f"{kind}_lanes", x.dtype, blocks, THREADS, args)
            return
        length, chunks = _chunks(n, CHUNK, outer, THREADS * pack)
        part = _parts(x, outer * chunks) if chunks > 1 else None
        rows = (x, part, y, n, length, chunks, packs, divisor)
        launch("reductions", f"{kind}_rows", x.dtype, outer * chunks, THREADS, rows)
    else:
        across = _power_of_two(-(-inner // pack), 32)
        blocks = outer * -(-inner // (across * pack))
        length, chunks = _chunks(n, 4 * THREADS // across, blocks, 1)
        part = _parts(x, outer * chunks * inner) if chunks > 1 else None
        columns = (x, part, y, n, inner, length, chunks, across, divisor)
        launch("reductions", f"{kind}_columns", x.dtype, blocks * chunks, THREADS, columns)
    if part is not None:
        across = _power_of_two(inner, 32)
        parts = (part, y, chunks, inner, across, divisor)
        blocks = outer * -(-inner // across)
        launch("reductions", f"{kind}_finish", x.dtype, blocks, THREADS, parts)


def _chunks(n: int, least: int, blocks: int, multiple: int) -> tuple[int, int]:
    """(length, number) of the chunks of n numbers of which ``blocks`` blocks each do one."""
    wanted = min(-(-n // least), max(MOST_BLOCKS // blocks, 1))
    length = -(-n // (wanted * multiple)) * multiple
    return length, -(-n // length)


def _parts(x: Array, n: int) -> Array:
    return namespace(x).empty(n, wider(x.dtype))


def _power_of_two(least: int, most: int) -> int:
    return min(1 << (least - 1).bit_length(), most)


def _kept(x: Array, axes: tuple[int, ...] | None, keepdims: bool) -> tuple[int, ...]:
    """The shape that is left of x's."""
    gone = axes or ()
    return tuple(1 if a in gone else n for a, n in enumerate(x.shape) if keepdims or a not in gone)


def sum(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Σ x over ``axis``; bool and integer sums are int64."""
    axes = _axes(x, axis)
    y = _reduced("sum", x, axes, _kept(x, axes, keepdims), None, out)
    return reference.sum(x, axis, keepdims, out) if y is None else y


def sum_to(x: Array, shape: tuple[int, ...], out: Array | None = None) -> Array:
    """The sum of x over the axes along which ``shape`` was broadcast to x's shape.

    It is the gradient of ``expand``, so of every operand that broadcast.
    """
    lead = x.ndim - len(shape)
    fits = lead >= 0 and all(n in (1, m) for n, m in zip(shape, x.shape[lead:], strict=True))
    own = [lead + i for i, n in enumerate(shape) if n == 1]
    y = _reduced("sum", x, (*range(lead), *own), shape, None, out) if fits else None
    return reference.sum_to(x, shape, out) if y is None else y


def mean(
    x: Array,
    axis: Any = None,
    keepdims: bool = False,
    correction: int = 0,
    out: Array | None = None,
) -> Array:
    """Σ x / (n - correction) over the n elements along ``axis`` of a floating array.

    A divisor of 0 or less counts as 0: the result is NaN or infinite.
    """
    axes = _axes(x, axis)
    y = _reduced("sum", x, axes, _kept(x, axes, keepdims), correction, out)
    return reference.mean(x, axis, keepdims, correction, out) if y is None else y


def mean_backward(
    g: Array, shape: tuple[int, ...], correction: int = 0, out: Array | None = None
) -> Array:
    """g / (n - correction) expanded to ``shape``; g has 1 in the axes that the mean went over."""
    place = broadcast_place(g.shape, shape)
    size = math.prod(shape)
    if place is None or g.ndim != len(shape) or not 0 < size < MOST_ELEMENTS or not compilable(g):
        return reference.mean_backward(g, shape, correction, out)
    y = destination(out, shape, g.dtype, g)
    count = math.prod(n for n, m in zip(shape, g.shape, strict=True) if n != m)
    args = (g, y, size, *place, float(max(count - correction, 0)))
    launch_flat("reductions", "mean_backward", g.dtype, size, args)
    return deliver(y, out)


def amax(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The largest element over ``axis``; NaN if there is one."""
    axes = _axes(x, axis)
    y = _reduced("amax", x, axes, _kept(x, axes, keepdims), None, out)
    return reference.amax(x, axis, keepdims, out) if y is None else y


def amin(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The smallest element over ``axis``; NaN if there is one."""
    axes = _axes(x, axis)
    y = _reduced("amin", x, axes, _kept(x, axes, keepdims), None, out)
    return reference.amin(x, axis, keepdims, out) if y is None else y


def argmax(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The int64 index of the first largest element, in the flattened array for axis None."""
    y = _place(x, axis, keepdims, False, out)
    return reference.argmax(x, axis, keepdims, out) if y is None else y


def argmin(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The int64 index of the first smallest element, in the flattened array for axis None."""
    y = _place(x, axis, keepdims, True, out)
    return reference.argmin(x, axis, keepdims, out) if y is None else y


def _place(x: Array, axis: Any, keepdims: bool, least: bool, out: Array | None) -> Array | None:
    """Where the largest (smallest) element is, along the last axis or in the whole array; None if
    it is not for the kernel."""
    axes = _axes(x, axis)
    along = axes is not None and axes in ((x.ndim - 1,), tuple(range(x.ndim)))
    if not along or not x.size or not compilable(x):
        return None
    n = x.size if len(axes or ()) == x.ndim else x.shape[-1]
    rows = x.size // n
    if n > LONGEST and rows < MOST_BLOCKS:
        return None
    y = destination(out, _kept(x, axes, keepdims), np.dtype(np.int64), x)
    blocks = blocks_for(rows, THREADS // 32)
    launch("reductions", "arg_rows", x.dtype, blocks, THREADS, (x, y, rows, n, least))
    return deliver(y, out)
