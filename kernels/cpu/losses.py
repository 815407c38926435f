"""Losses: the value and its gradient in one pass, row after row.

Losses of rows and sums of chunks are kept in float64, and added up in order by a last task.
"""

from __future__ import annotations

import numpy as np

from .. import reference
from ..reference import REDUCTIONS, check_cross_entropy, check_mse, raise_bad_label
from ._arrays import compilable, deliver, destination
from ._jit import device, task
from ._math import log
from ._tasks import Call, floats, integer, integers, number, rows, run, vector
from .rows import exp_rows

__all__ = ["mse_loss", "softmax_cross_entropy"]

CHUNK = 4096  # elements, or a row if that is longer, in one task: they stay in the L1 cache
MEAN, SUM, NONE = (REDUCTIONS.index(name) for name in ("mean", "sum", "none"))


@task
def _weigh(args, i):
    """sums[0] = Σₙ w_y over the rows kept. The answer is 1 + the first row whose label is out of
    range, or 0."""
    labels, weight, sums = integers(args, 0), vector(args, 2), floats(args, 4)
    ignore_index, classes = integer(args, 6), integer(args, 7)
    sums[0] = 0
    for n in range(len(labels)):
        label = labels[n]
        if label != ignore_index:
            if label < 0 or label >= classes:
                return n + 1
            sums[0] += weight[label] if weight.size else 1.0
    return 0


@device
def _loss_of(x, label, weight, smoothing, top, total, divisor, d):
    """The loss of a row; d, which holds e^(x - top), becomes its gradient over the divisor."""
    T, classes = type(divisor), len(x)
    log_total = T(log(total))
    hard, smooth = T(1 - smoothing), T(smoothing / classes)
    weight_sum = weight.sum() if weight.size else T(classes)
    if weight.size:
        hard *= weight[label]
    loss = -hard * (x[label] - top - log_total)
    factor = T((hard + smooth * weight_sum) / (total * divisor))
    if smoothing:
        spread = 0.0
        for c in range(classes):
            w = weight[c] if weight.size else T(1)
            spread += w * (x[c] - top - log_total)
            d[c] = factor * d[c] - smooth * w / divisor
        loss -= smooth * T(spread)
    else:
        for c in range(classes):
            d[c] *= factor
    d[label] -= hard / divisor
    return loss


@task
def _cross_entropy_rows(args, i):
    """dlogits of some rows; sums[1 + n] = the loss of row n."""
    logits, labels, weight = rows(args, 0), integers(args, 3), vector(args, 5)
    dlogits, sums = rows(args, 7), floats(args, 10)
    ignore_index, smoothing, reduction = integer(args, 12), number(args, 13), integer(args, 14)
    height = integer(args, 15)
    T = logits.dtype.type
    divisor = T(sums[0]) if reduction == MEAN else T(1)
    tops, totals = np.empty(height, logits.dtype), np.empty(height)
    first, last = i * height, min((i + 1) * height, len(labels))
    exp_rows(logits[first:last], dlogits[first:last], tops, totals)
    for n in range(first, last):
        if labels[n] == ignore_index:
            dlogits[n, :] = 0
            sums[1 + n] = 0
        else:
            sums[1 + n] = _loss_of(
                logits[n], labels[n], weight, smoothing, tops[n - first], totals[n - first],
                divisor, dlogits[n],
            )  # fmt: skip
    return 0


@task
def _total(args, i):
    """loss = Σ terms, divided by the first number for "mean"; the terms themselves for "none"."""
    sums, loss, reduction = floats(args, 0), vector(args, 2), integer(args, 4)
    T = loss.dtype.type
    if reduction == NONE:
        for n in range(len(loss)):
            loss[n] = T(sums[1 + n])
    else:
        total = 0.0
        for n in range(1, len(sums)):
            total += sums[n]
        loss[0] = T(total) / (T(sums[0]) if reduction == MEAN else T(1))
    return 0


def softmax_cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy of softmax(logits) with integer labels, and its gradient: the reference's
    formulas.

    logits (N, C) floating, labels (N,) int64, weight (C,) → loss () or (N,), dlogits (N, C).
    Raises ValueError for a label outside 0..C-1.
    """
    inputs = (logits,) if weight is None else (logits, weight)
    if not compilable(*inputs) or labels.dtype != np.int64:
        return reference.softmax_cross_entropy(
            logits, labels, weight, ignore_index, label_smoothing, reduction, out
        )
    check_cross_entropy(logits, labels, weight, label_smoothing, reduction)
    inputs = (*inputs, labels)
    shape = labels.shape if reduction == "none" else ()
    loss = destination(out[0], shape, logits.dtype, *inputs)
    dlogits = destination(out[1], logits.shape, logits.dtype, *inputs)
    calls = softmax_cross_entropy_calls(
        np.ascontiguousarray(logits),
        np.ascontiguousarray(labels),
        None if weight is None else np.ascontiguousarray(weight),
        ignore_index,
        label_smoothing,
        reduction,
        (loss, dlogits),
    )
    assert calls is not None
    run(*calls)
    return deliver(loss, out[0]), deliver(dlogits, out[1])


def softmax_cross_entropy_calls(
    logits: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    out: tuple[np.ndarray, np.ndarray],
) -> list[Call] | None:
    """``softmax_cross_entropy`` as calls, or None if these arrays are not for compiled kernels."""
    loss, dlogits = out
    arrays = (logits, loss, dlogits) if weight is None else (logits, loss, dlogits, weight)
    direct = all(x.flags.c_contiguous for x in (*arrays, labels))
    if not direct or not compilable(*arrays) or labels.dtype != np.int64:
        return None
    (n, classes), dtype, mode = logits.shape, logits.dtype, REDUCTIONS.index(reduction)
    sums = np.empty(1 + n)  # the total weight, and the loss of each row
    weights = (logits, 0) if weight is None else (weight, classes)
    height = max(1, CHUNK // max(1, classes))
    weigh = Call(
        _weigh,
        dtype,
        1,
        (labels, n, *weights, sums, len(sums), ignore_index, classes),
        writes=(sums,),
        refuse=lambda answer, arrays: raise_bad_label(arrays[0], answer - 1, classes),
    )
    each = Call(
        _cross_entropy_rows,
        dtype,
        -(-n // height),
        (
            logits, n, classes, labels, n, *weights, dlogits, n, classes, sums, len(sums),
            ignore_index, float(label_smoothing), mode, height,
        ),
        writes=(dlogits, sums),
        nanoseconds=1.0 * logits.size,
    )  # fmt: skip
    return [weigh, each, _total_call(sums, loss, mode)]


def _total_call(sums: np.ndarray, loss: np.ndarray, mode: int) -> Call:
    values = (sums, len(sums), loss, loss.size, mode)
    return Call(_total, loss.dtype, 1, values, writes=(loss,))


@task
def _mse_chunk(args, i):
    """dinput, and the squares or their sum, of a chunk."""
    input, target, dinput = vector(args, 0), vector(args, 2), vector(args, 4)
    loss, sums, reduction = vector(args, 6), floats(args, 8), integer(args, 10)
    T = input.dtype.type
    divisor = T(len(input)) if reduction == MEAN else T(1)
    part = slice(i * CHUNK, (i + 1) * CHUNK)
    x, y, d = input[part], target[part], dinput[part]
    total = 0.0
    for n in range(len(x)):
        total += (x[n] - y[n]) * (x[n] - y[n])
    if reduction == NONE:
        squares = loss[part]
        for n in range(len(x)):
            squares[n] = (x[n] - y[n]) * (x[n] - y[n])
    for n in range(len(x)):
        d[n] = T(2) * (x[n] - y[n]) / divisor
    sums[1 + i] = total
    return 0


def mse_loss(
    input: np.ndarray,
    target: np.ndarray,
    reduction: str = "mean",
    out: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """(input - target)², and its gradient 2 (input - target), divided by n for "mean".

    Shapes are equal. The loss is () or, for "none", input's shape; dinput has input's shape.
    """
    if not compilable(input, target):
        return reference.mse_loss(input, target, reduction, out)
    check_mse(input, target, reduction)
    shape, dtype = input.shape, input.dtype
    loss = destination(out[0], shape if reduction == "none" else (), dtype, input, target)
    dinput = destination(out[1], shape, dtype, input, target)
    calls = mse_loss_calls(
        np.ascontiguousarray(input), np.ascontiguousarray(target), reduction, (loss, dinput)
    )
    assert calls is not None
    run(*calls)
    return deliver(loss, out[0]), deliver(dinput, out[1])


def mse_loss_calls(
    input: np.ndarray, target: np.ndarray, reduction: str, out: tuple[np.ndarray, np.ndarray]
) -> list[Call] | None:
    """``mse_loss`` as calls, or None if these arrays are not for compiled kernels."""
    loss, dinput = out
    arrays = (input, target, loss, dinput)
    if not all(x.flags.c_contiguous for x in arrays) or not compilable(*arrays):
        return None
    n, mode = input.size, REDUCTIONS.index(reduction)
    chunks = -(-n // CHUNK)
    sums = np.empty(1 + chunks)
    sums[0] = n
    each = Call(
        _mse_chunk,
        input.dtype,
        chunks,
        (input, n, target, n, dinput, n, loss, loss.size, sums, len(sums), mode),
        writes=(dinput, sums, loss),
        nanoseconds=1.0 * n,
    )
    return [each] if mode == NONE else [each, _total_call(sums, loss, mode)]
