"""Layer norm, row after row.

The gradients of weight and bias are sums over the rows: each block sums those of its chunk, which
the shape alone decides, and ``column_sums`` adds up the sums of the blocks in order.
"""

from __future__ import annotations

from typing import Any

from .. import reference
from ..reference import Array, check_layer_norm, namespace
from ._arrays import compilable, deliver, destination
from ._launch import launch
from .rows import LONGEST, MOST_THREADS, THREADS, Teams, held, power_of_two, sums_dtype, teams

__all__ = ["layer_norm", "layer_norm_backward"]

Gradients = tuple[Array | None, Array | None, Array | None]

CHUNKS = 512  # blocks at most, or twice as many small ones, whose rows are summed


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    out: Gradients = (None, None, None),
) -> tuple[Array, Array, Array]:
    """Each row of x with mean 0 and variance 1, then · weight + bias: the reference's formula.

    x (N, D), weight (D,), bias (D,) → y (N, D), μ (N,), r (N,), the last two for the gradient.
    """
    check_layer_norm(x, weight, bias)
    if not x.size or x.shape[1] >= LONGEST or not compilable(x, weight, bias):
        return reference.layer_norm(x, weight, bias, eps, out)
    (n, columns), inputs = x.shape, (x, weight, bias)
    y = destination(out[0], x.shape, x.dtype, *inputs)
    mean = destination(out[1], (n,), x.dtype, *inputs)
    rstd = destination(out[2], (n,), x.dtype, *inputs)
    by = teams(columns, x.dtype)
    args = (x, weight, bias, y, mean, rstd, n, columns, *((by.lanes,) if by.lanes else ()))
    kernel, blocks = f"layer_norm_{by.kind}", -(-n // by.each)
    launch("normalization", kernel, x.dtype, blocks, by.threads, (*args, float(eps)))
    return deliver(y, out[0]), deliver(mean, out[1]), deliver(rstd, out[2])


def layer_norm_backward(
    g: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: Gradients = (None, None, None),
) -> Gradients:
    """The gradients of ``layer_norm`` for x, weight and bias; None where not needed.

    With x̂ = (x - μ) r and h = g w:
        dx = r (h - Σ h / D - x̂ Σ (h x̂) / D);  dweight = Σₙ g x̂;  dbias = Σₙ g
    """
    check_layer_norm(x, weight, None)
    inputs = (g, x, mean, rstd, weight)
    by = backward_teams(x) if x.size and g.shape == x.shape else None
    if by is None or not compilable(*inputs):
        return reference.layer_norm_backward(g, x, mean, rstd, weight, needs, out)
    (n, columns), dtype, wide = x.shape, x.dtype, sums_dtype(x.dtype)
    dx, dweight, dbias = [
        destination(o, shape, dtype, *inputs) if needed else None
        for o, shape, needed in zip(out, (x.shape, (columns,), (columns,)), needs, strict=True)
    ]
    chunks = CHUNKS if by.threads >= THREADS else 2 * CHUNKS
    each = -(-n // (chunks * by.each)) * by.each  # rows of a block, in whole turns of its teams
    blocks = -(-n // each)
    dweights, dbiases = [
        None if total is None else namespace(x).empty((blocks, columns), wide)
        for total in (dweight, dbias)
    ]
    args: tuple[Any, ...] = (g, x, mean, rstd, weight, dx, dweights, dbiases, n, columns, each)
    args, shared = ((*args, by.lanes), columns * wide.itemsize) if by.lanes else (args, 0)
    kernel = f"layer_norm_backward_{by.kind}"
    launch("normalization", kernel, dtype, blocks, by.threads, args, shared)
    if dweights is not None or dbiases is not None:
        args = (dweights, dbiases, dweight, dbias, blocks, columns)
        warps = min(32, power_of_two(blocks))
        launch("normalization", "column_sums", dtype, (-(-columns // 32), 2), 32 * warps, args)
    dx, dweight, dbias = [
        None if r is None else deliver(r, o) for r, o in zip((dx, dweight, dbias), out, strict=True)
    ]
    return dx, dweight, dbias


def backward_teams(x: Array) -> Teams | None:
    """Who does a row of x, or None for rows too long for a block: the sums of all columns, and the
    row, stay in registers."""
    shares = held(x.dtype) // 4  # packs of a thread: K of cu/normalization.cu
    packs = -(-x.shape[1] * x.dtype.itemsize // 16)
    if packs <= 32 * shares:
        lanes = min(32, power_of_two(packs / shares))
        return Teams(lanes, THREADS, THREADS // lanes)
    threads = -(-packs // (32 * shares)) * 32
    return Teams(0, threads, 1) if threads <= MOST_THREADS else None
