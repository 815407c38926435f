"""Softmax and its logarithm, row after row.

A row's result depends on nothing but the row: its sum is added up in float64, in an order that its
length alone decides. Of several rows the exponentials are taken in one sweep, so that short rows
fill vectors too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .. import reference
from ._arrays import compilable, deliver, destination
from ._jit import device, jit
from ._math import exp

__all__ = ["log_softmax", "softmax"]

LANES = 16  # a row is combined in as many parts, side by side
SWEEP = 4096  # elements, or a row if that is longer: what stays in the L1 cache between the passes


def _fold(combine: Callable[[Any, Any, Any], Any], neutral: float, widen: bool) -> Any:
    """An intrinsic f(row) that combines the elements of a contiguous row, ``neutral`` if it is
    empty; in float64 if ``widen``.

    Lane k takes row[k], row[k + LANES], …; then the lanes are folded in halves.
    """

    @intrinsic
    def fold(typingctx: Any, row: Any) -> Any:
        result = types.float64 if widen else row.dtype

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(row)(context, builder, args[0])
            (size,) = cgutils.unpack_tuple(builder, array.shape)
            narrow, wide = (
                ir.VectorType(context.get_data_type(t), LANES) for t in (row.dtype, result)
            )
            total = cgutils.alloca_once_value(builder, ir.Constant(wide, [neutral] * LANES))

            def take(vector: Any) -> None:
                vector = vector if narrow == wide else builder.fpext(vector, wide)
                builder.store(combine(builder, builder.load(total), vector), total)

            def place(at: Any) -> Any:
                return builder.bitcast(builder.gep(array.data, [at]), narrow.as_pointer())

            align = row.dtype.bitwidth // 8
            whole = builder.and_(size, size.type(-LANES))
            bounds = (size.type(0), whole, size.type(LANES))
            with cgutils.for_range_slice(builder, *bounds) as (at, _):
                take(builder.load(place(at), align=align))
            left = builder.sub(size, whole)
            with builder.if_then(builder.icmp_signed(">", left, left.type(0))):
                rest = ir.Constant(narrow, [neutral] * LANES)
                take(_load_first(builder, place(whole), left, rest, align))
            return _halve(builder, combine, builder.load(total))

        return result(row), generate

    return fold


def _load_first(builder: Any, place: Any, count: Any, rest: Any, align: int) -> Any:
    """The first ``count`` elements of the vector there, in the other lanes those of ``rest``."""
    counts = ir.VectorType(count.type, LANES)
    spread = builder.insert_element(counts(ir.Undefined), count, ir.IntType(32)(0))
    spread = builder.shuffle_vector(spread, spread, _lanes([0] * LANES))
    inside = builder.icmp_signed("<", ir.Constant(counts, list(range(LANES))), spread)
    arguments = [place, ir.IntType(32)(align), inside, rest]
    name = f"llvm.masked.load.v{LANES}{rest.type.element.intrinsic_name}.p0"
    function_type = ir.FunctionType(rest.type, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def _halve(builder: Any, combine: Callable[[Any, Any, Any], Any], vector: Any) -> Any:
    half = LANES // 2
    while half:
        halves = [_lanes(list(range(first, first + half))) for first in (0, half)]
        vector = combine(builder, *[builder.shuffle_vector(vector, vector, h) for h in halves])
        half //= 2
    return builder.extract_element(vector, ir.IntType(32)(0))


def _lanes(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of a and b; a where b is NaN."""
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _plus(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


row_max = _fold(_larger, -math.inf, widen=False)  # passes over NaN
row_sum = _fold(_plus, 0.0, widen=True)


@device
def exp_rows(x, p, tops, sums):
    """p = e^(x - max x) row after row; tops (N,) = max x, and float64 sums (N,) = Σ p."""
    for n in range(len(x)):
        row, shifted = x[n], p[n]
        top = row_max(row)
        for c in range(len(row)):
            shifted[c] = row[c] - top
        tops[n] = top
    flat = p.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])
    for n in range(len(x)):
        sums[n] = row_sum(p[n])


@device
def softmax_row(x, p):
    """p = softmax(x); returns max x and log Σ e^(x - max x). The bits are those of ``exp_rows``."""
    top = row_max(x)
    for c in range(len(x)):
        p[c] = exp(x[c] - top)
    total = row_sum(p)
    factor = type(top)(1 / total)
    for c in range(len(x)):
        p[c] *= factor
    return top, type(top)(math.log(total))


@jit("const(T[:, ::1]), T[:, ::1], boolean")
def _softmax(x, out, logarithm):
    T, step = x.dtype.type, max(1, SWEEP // x.shape[1])
    tops, sums = np.empty(step, x.dtype), np.empty(step)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        exp_rows(x[part], out[part], tops, sums)
        for n in range(start, min(start + step, len(x))):
            row, y, top, total = x[n], out[n], tops[n - start], sums[n - start]
            if logarithm:
                log_total = T(math.log(total))
                for c in range(len(row)):
                    y[c] = row[c] - top - log_total
            else:
                factor = T(1 / total)
                for c in range(len(row)):
                    y[c] *= factor


def softmax(x: np.ndarray, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """eˣ / Σ eˣ along ``axis``, shifted by the largest element so that it does not overflow."""
    return _along_last(x, axis, out, False, reference.softmax)


def log_softmax(x: np.ndarray, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """log softmax(x) = (x - max x) - log Σ e^(x - max x) along ``axis``."""
    return _along_last(x, axis, out, True, reference.log_softmax)


def _along_last(
    x: np.ndarray, axis: int, out: np.ndarray | None, logarithm: bool, otherwise: Callable[..., Any]
) -> np.ndarray:
    last = x.ndim > 0 and axis in (-1, x.ndim - 1)
    if not last or x.size == 0 or not compilable(x):
        return otherwise(x, axis, out)
    y = destination(out, x.shape, x.dtype, x)
    table = (-1, x.shape[-1])
    _softmax(np.ascontiguousarray(x).reshape(table), y.reshape(table), logarithm)
    return deliver(y, out)
