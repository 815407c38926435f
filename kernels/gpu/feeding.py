"""Data that is on the GPU already: the next batch of it, gathered and scaled in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..reference import Array
from ._arrays import FLOATS, deliver, destination
from ._launch import launch

__all__ = ["next_rows", "push", "take_scaled"]

COUNT = np.dtype(np.int64)


def next_rows(order: Array, state: Array, n: int, out: Array | None = None) -> Array:
    """The next n numbers of ``order``, which begins anew at its end; state, int64 [place], then
    advances by n."""
    if not (order.dtype == state.dtype == COUNT and order.flags.c_contiguous):
        return reference.next_rows(order, state, n, out)
    rows = destination(out, (n,), COUNT, order, state)
    launch("feeding", "next_rows", "float32", 1, 256, (order, order.size, state, rows, n))
    return deliver(rows, out)


def take_scaled(
    x: Array, rows: Array, scale: float, shift: float, dtype: Any, out: Array | None = None
) -> Array:
    """x[rows] · scale + shift, as ``dtype``; of uint8 x NaN for a row outside -M..M-1."""
    direct = x.dtype == np.uint8 and rows.dtype == COUNT
    direct = direct and x.flags.c_contiguous and rows.flags.c_contiguous
    if not direct or np.dtype(dtype).name not in FLOATS:
        return reference.take_scaled(x, rows, scale, shift, dtype, out)
    y = destination(out, (*rows.shape, *x.shape[1:]), np.dtype(dtype), x, rows)
    if y.size:
        width = y.size // rows.size
        values = (x, rows, y, len(x), width, float(scale), float(shift))
        launch("feeding", "take_scaled_bytes", dtype, rows.size, 256, values)
    return deliver(y, out)


def push(ring: Array, state: Array, value: Array) -> None:
    """ring[count mod M] = value, where count is state, int64 [count], which then advances."""
    fits = ring.dtype.name in FLOATS and value.dtype == ring.dtype and state.dtype == COUNT
    if not fits or not ring.flags.c_contiguous:
        reference.push(ring, state, value)
    else:
        launch("feeding", "push", ring.dtype, 1, 1, (ring, ring.size, state, value))
