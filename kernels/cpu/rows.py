"""Softmax and its logarithm, row after row.

A row's result depends on nothing but the row: its sum is added up in float64, in an order that its
length alone decides. Of several rows the exponentials are taken in one sweep, so that short rows
fill vectors too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import reference
from ._arrays import compilable, deliver, destination
from ._jit import device, task
from ._lanes import folds, sums
from ._math import exp
from ._tasks import Call, flat, free, integer, rows, run, scratch

__all__ = ["log_softmax", "softmax"]

LANES = 16  # few, as rows may be short
SWEEP = 4096  # elements, or a row if that is longer, in one task: they stay in the L1 cache


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of a and b; a where b is NaN."""
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _element(builder: Any, elements: Any, numbers: Any) -> Any:
    return elements[0]


row_max = folds(_larger, -math.inf, _element, lanes=LANES)  # passes over NaN
row_sum = sums(_element, widen=True, lanes=LANES)


@device
def exp_rows(x, p, tops, totals):
    """p = e^(x - max x) row after row; tops (N,) = max x, and float64 totals (N,) = Σ p."""
    for n in range(len(x)):
        row, shifted = x[n], p[n]
        top = row_max((row,), ())
        for c in range(len(row)):
            shifted[c] = row[c] - top
        tops[n] = top
    every = flat(p)
    for i in range(len(every)):
        every[i] = exp(every[i])
    for n in range(len(x)):
        totals[n] = row_sum((p[n],), ())


@task
def _softmax_rows(args, i):
    """softmax of some rows, or its logarithm."""
    x, out = rows(args, 0), rows(args, 3)
    logarithm, height = integer(args, 6), integer(args, 7)
    T = x.dtype.type
    tops, totals = scratch(x.dtype, height), scratch(np.float64, height)
    first, last = i * height, min((i + 1) * height, len(x))
    exp_rows(x[first:last], out[first:last], tops, totals)
    for n in range(first, last):
        row, y, top, total = x[n], out[n], tops[n - first], totals[n - first]
        if logarithm:
            log_total = T(math.log(total))
            for c in range(len(row)):
                y[c] = row[c] - top - log_total
        else:
            factor = T(1 / total)
            for c in range(len(row)):
                y[c] *= factor
    free(tops)
    free(totals)
    return 0


def _calls(logarithm: bool, x: np.ndarray, axis: int, out: np.ndarray) -> list[Call] | None:
    direct = x.flags.c_contiguous and out.flags.c_contiguous and compilable(x, out)
    if not direct or not _along_last(x, axis):
        return None
    width = x.shape[-1]
    n, height = x.size // width, max(1, SWEEP // width)
    return [Call(
        _softmax_rows,
        x.dtype,
        -(-n // height),
        (x, n, width, out, n, width, logarithm, height),
        writes=(out,),
        nanoseconds=1.0 * x.size,
    )]  # fmt: skip


softmax_calls = partial(_calls, False)
log_softmax_calls = partial(_calls, True)


def softmax(x: np.ndarray, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """eˣ / Σ eˣ along ``axis``, shifted by the largest element so that it does not overflow."""
    return _run(softmax_calls, reference.softmax, x, axis, out)


def log_softmax(x: np.ndarray, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """log softmax(x) = (x - max x) - log Σ e^(x - max x) along ``axis``."""
    return _run(log_softmax_calls, reference.log_softmax, x, axis, out)


def _along_last(x: np.ndarray, axis: int) -> bool:
    """Whether there are rows along ``axis``, one after another."""
    return x.size > 0 and x.ndim > 0 and axis in (-1, x.ndim - 1)


def _run(
    calls: Callable[..., list[Call] | None],
    otherwise: Callable[..., np.ndarray],
    x: np.ndarray,
    axis: int,
    out: np.ndarray | None,
) -> np.ndarray:
    if not _along_last(x, axis) or not compilable(x):
        return otherwise(x, axis, out)
    y = destination(out, x.shape, x.dtype, x)
    made = calls(np.ascontiguousarray(x), axis, y)
    assert made is not None
    run(*made)
    return deliver(y, out)
