"""Softmax and its logarithm, row after row, and how rows are shared out to threads.

A row is a team's work (``cu/rows.cuh``): some lanes of a warp where it is short, else a block.
Which, and so the order of its sums, follows from its length alone: a row's result does not depend
on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import reference
from ..reference import Array, wider
from ._arrays import compilable, deliver, destination
from ._launch import launch

__all__ = ["log_softmax", "softmax"]

THREADS = 256  # of a block whose teams are lanes
MOST_THREADS = 1024  # of a block that is one team
LONGEST = 2**30  # columns are counted in 32 bits


class Teams(NamedTuple):
    """``lanes`` of a warp for a row, so ``each`` rows to a block of ``threads``; 0 lanes where the
    whole block does one row."""

    lanes: int
    threads: int
    each: int

    @property
    def kind(self) -> str:
        """The ending of the kernel's name."""
        return "lanes" if self.lanes else "block"


def teams(columns: int, dtype: Any) -> Teams:
    """Who does a row of so many columns."""
    packs = -(-columns * np.dtype(dtype).itemsize // 16)
    if packs <= 32 * held(dtype):
        lanes = min(32, power_of_two(packs / 2))  # two packs or more for each lane
        return Teams(lanes, THREADS, THREADS // lanes)
    return Teams(0, max(128, min(MOST_THREADS, power_of_two(packs / held(dtype)))), 1)


def held(dtype: Any) -> int:
    """The packs that each thread holds in registers: HELD of ``cu/rows.cuh``."""
    return 8 if np.dtype(dtype).itemsize == 4 else 4


def sums_dtype(dtype: Any) -> Any:
    """The dtype that kernels add up in: A of ``cu/common.cuh``."""
    return wider(np.dtype(dtype))


def power_of_two(least: float) -> int:
    power = 1
    while power < least:
        power *= 2
    return power


def softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """eˣ / Σ eˣ along ``axis``, shifted by the largest element so that it does not overflow."""
    return _softmax(False, reference.softmax, x, axis, out)


def log_softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """log softmax(x) = (x - max x) - log Σ e^(x - max x) along ``axis``."""
    return _softmax(True, reference.log_softmax, x, axis, out)


def _softmax(
    logarithm: bool,
    otherwise: Callable[..., Array],
    x: Array,
    axis: int,
    out: Array | None,
) -> Array:
    last = x.ndim > 0 and axis in (-1, x.ndim - 1)
    if not last or not x.size or x.shape[-1] >= LONGEST or not compilable(x):
        return otherwise(x, axis, out)
    y = destination(out, x.shape, x.dtype, x)
    columns = x.shape[-1]
    rows, by = x.size // columns, teams(columns, x.dtype)
    size = (rows, columns, by.lanes) if by.lanes else (columns,)
    args = (x, y, *size, logarithm)
    launch("rows", f"softmax_{by.kind}", x.dtype, -(-rows // by.each), by.threads, args)
    return deliver(y, out)
