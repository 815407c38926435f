"""Layer norm, row after row: a row stays in the L1 cache while it is passed over.

A row's result depends on nothing but the row. The gradients of weight and bias are sums over the
batch: each task sums the rows of its chunk, which the shape alone decides, and then the sums of the
chunks are added up in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import reference
from ..reference import check_layer_norm
from ._arrays import compilable, deliver, destination
from ._jit import device, task
from ._lanes import sums, updates
from ._tasks import Call, free, integer, number, rows, run, scratch, vector
from .linalg import sum_rows

__all__ = ["layer_norm", "layer_norm_backward"]

CHUNK = 8192  # elements, or a row if that is longer, in one task
CHUNKS = 64  # in which the gradients of weight and bias are summed, or more
HEIGHT = 256  # rows at most in one of them: a float32 sum of more would lose digits


def _normed(builder: Any, x: Any, mean: Any, rstd: Any) -> Any:
    return builder.fmul(builder.fsub(x, mean), rstd)


def _centred_square(builder: Any, elements: Any, numbers: Any) -> Any:
    centred = builder.fsub(elements[0], numbers[0])
    return builder.fmul(centred, centred)


def _y(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    x, weight, bias = elements
    return builder.fadd(builder.fmul(_normed(builder, x, *numbers), weight), bias)


def _weighted(builder: Any, elements: Any, numbers: Any) -> Any:
    return builder.fmul(elements[0], elements[1])


def _weighted_normed(builder: Any, elements: Any, numbers: Any) -> Any:
    normed = _normed(builder, elements[2], *numbers)
    return builder.fmul(_weighted(builder, elements, numbers), normed)


_sum = sums(lambda builder, elements, numbers: elements[0])  # x
_sum_of_squares = sums(_centred_square)  # (x - μ)²
_write_y = updates(_y)
_sums_for_backward = sums(_weighted, _weighted_normed)  # h = g w, and h x̂


@device
def _norm_row(x, weight, bias, eps, y):
    """y = (x - μ) r · weight + bias; returns μ and r."""
    T, d = type(eps), type(eps)(len(x))
    mean = _sum((x,), ()) / d
    rstd = T(1) / math.sqrt(_sum_of_squares((x,), (mean,)) / d + eps)
    _write_y((y,), (x, weight, bias), (mean, rstd))
    return mean, rstd


@task
def _layer_norm_rows(args, i):
    x, weight, bias = rows(args, 0), vector(args, 3), vector(args, 5)
    y, mean, rstd = rows(args, 7), vector(args, 10), vector(args, 12)
    eps, height = x.dtype.type(number(args, 14)), integer(args, 15)
    for n in range(i * height, min((i + 1) * height, len(x))):
        mean[n], rstd[n] = _norm_row(x[n], weight, bias, eps, y[n])
    return 0


def _dx(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    """r (h - level - x̂ along)."""
    mean, rstd, level, along = numbers
    h, normed = _weighted(builder, elements, numbers), _normed(builder, elements[2], mean, rstd)
    centred = builder.fsub(builder.fsub(h, level), builder.fmul(normed, along))
    return builder.fmul(rstd, centred)


def _add_dweight(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fadd(old, builder.fmul(elements[0], _normed(builder, elements[2], *numbers[:2])))


def _add_dbias(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fadd(old, elements[0])


_write_dx = updates(_dx)
_add_rest = updates(_add_dweight, _add_dbias)
_write_all = updates(_dx, _add_dweight, _add_dbias)


@task
def _layer_norm_backward_rows(args, i):
    """dx of some rows; dweights[i] and dbiases[i] = the sums over these rows."""
    g, x, mean, rstd = rows(args, 0), rows(args, 3), vector(args, 6), vector(args, 8)
    weight, dx, dweights, dbiases = vector(args, 10), rows(args, 12), rows(args, 15), rows(args, 18)
    height, width = integer(args, 21), x.shape[1]
    T = x.dtype.type
    memory = scratch(x.dtype, 2 * width)
    dweight = dweights[i] if dweights.size else memory[:width]
    dbias = dbiases[i] if dbiases.size else memory[width:]
    dweight[:] = 0
    dbias[:] = 0
    summed = dweights.size or dbiases.size
    for n in range(i * height, min((i + 1) * height, len(x))):
        inputs, m, r = (g[n], weight, x[n]), mean[n], rstd[n]
        level = along = T(0)
        if dx.size:
            level, along = _sums_for_backward(inputs, (m, r))
            level /= T(width)
            along /= T(width)
        numbers = (m, r, level, along)
        if dx.size and summed:
            _write_all((dx[n], dweight, dbias), inputs, numbers)
        elif dx.size:
            _write_dx((dx[n],), inputs, numbers)
        elif summed:
            _add_rest((dweight, dbias), inputs, numbers)
    free(memory)
    return 0


def layer_norm(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] = (None, None, None),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row of x with mean 0 and variance 1, then · weight + bias: the reference's formula.

    x (N, D), weight (D,), bias (D,) → y (N, D), μ (N,), r (N,), the last two for the gradient.
    """
    inputs = [a for a in (x, weight, bias) if a is not None]
    if not compilable(*inputs):
        return reference.layer_norm(x, weight, bias, eps, out)
    check_layer_norm(x, weight, bias)
    shapes = (x.shape, x.shape[:1], x.shape[:1])
    results = [
        destination(o, shape, x.dtype, *inputs) for o, shape in zip(out, shapes, strict=True)
    ]
    x, weight, bias = _contiguous(x, weight, bias)
    calls = layer_norm_calls(x, weight, bias, eps, (results[0], results[1], results[2]))
    assert calls is not None
    run(*calls)
    y, mean, rstd = (deliver(r, o) for r, o in zip(results, out, strict=True))
    return y, mean, rstd


def layer_norm_calls(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> list[Call] | None:
    """``layer_norm`` as a call, or None if these arrays are not for compiled kernels."""
    if not _direct(x, weight, bias, *out):
        return None
    (n, width), (y, mean, rstd) = x.shape, out
    height = max(1, CHUNK // max(1, width))
    return [Call(
        _layer_norm_rows,
        x.dtype,
        -(-n // height),
        (
            x, n, width, _or_full(weight, 1, x), width, _or_full(bias, 0, x), width, y, n, width,
            mean, n, rstd, n, float(eps), height,
        ),
        writes=out,
        nanoseconds=0.3 * x.size,
    )]  # fmt: skip


def _contiguous(*arrays: np.ndarray | None) -> Any:
    return [None if a is None else np.ascontiguousarray(a) for a in arrays]


def _direct(*arrays: np.ndarray | None) -> bool:
    given = [a for a in arrays if a is not None]
    return all(a.flags.c_contiguous for a in given) and compilable(*given)


def _or_full(a: np.ndarray | None, value: int, x: np.ndarray) -> np.ndarray:
    """An array; for None one as long as a row of x, full of this value."""
    return np.full(x.shape[1], value, x.dtype) if a is None else a


def _or_empty(a: np.ndarray | None, other: np.ndarray) -> tuple[Any, ...]:
    """An array and its shape for the slots; for None an empty one of as many axes as ``other``."""
    return (other, *[0] * other.ndim) if a is None else (a, *a.shape)


def layer_norm_backward(
    g: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] = (None, None, None),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The gradients of ``layer_norm`` for x, weight and bias; None where not needed.

    With x̂ = (x - μ) r and h = g w:
        dx = r (h - Σ h / D - x̂ Σ (h x̂) / D);  dweight = Σₙ g x̂;  dbias = Σₙ g
    """
    inputs = [a for a in (g, x, mean, rstd, weight) if a is not None]
    if not compilable(*inputs) or g.shape != x.shape:
        return reference.layer_norm_backward(g, x, mean, rstd, weight, needs, out)
    check_layer_norm(x, weight, None)
    shapes = (x.shape, x.shape[1:], x.shape[1:])
    results = [
        destination(o, shape, x.dtype, *inputs) if needed else None
        for o, shape, needed in zip(out, shapes, needs, strict=True)
    ]
    g, x, mean, rstd, weight = _contiguous(g, x, mean, rstd, weight)
    dx, dweight, dbias = results
    calls = layer_norm_backward_calls(g, x, mean, rstd, weight, needs, (dx, dweight, dbias))
    assert calls is not None
    run(*calls)
    dx, dweight, dbias = (
        None if r is None else deliver(r, o) for r, o in zip(results, out, strict=True)
    )
    return dx, dweight, dbias


def layer_norm_backward_calls(
    g: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray | None,
    needs: tuple[bool, bool, bool],
    out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
) -> list[Call] | None:
    """``layer_norm_backward`` as calls, or None if these arrays are not for compiled kernels."""
    dx, dweight, dbias = (r if needed else None for r, needed in zip(out, needs, strict=True))
    if not _direct(g, x, mean, rstd, weight, dx, dweight, dbias):
        return None
    n, width = x.shape
    height = min(HEIGHT, max(1, CHUNK // max(1, width), -(-n // CHUNKS)))
    chunks = -(-n // height)
    dweights, dbiases = (
        None if r is None else np.empty((chunks, width), x.dtype) for r in (dweight, dbias)
    )
    each = Call(
        _layer_norm_backward_rows,
        x.dtype,
        chunks,
        (
            g, n, width, x, n, width, mean, n, rstd, n, _or_full(weight, 1, x), width,
            *_or_empty(dx, x), *_or_empty(dweights, x), *_or_empty(dbiases, x), height,
        ),
        writes=tuple(a for a in (dx, dweights, dbiases) if a is not None),
        nanoseconds=0.6 * x.size,
    )  # fmt: skip
    totals = ((dweights, dweight), (dbiases, dbias))
    return [each, *[sum_rows(p, r) for p, r in totals if p is not None and r is not None]]
