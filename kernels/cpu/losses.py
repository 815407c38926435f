"""Losses: the value and its gradient in one pass, row after row.

Losses of rows and sums of chunks are kept in float64, and added up in order by a last task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..reference import REDUCTIONS, check_bce, check_cross_entropy, check_mse, raise_bad_label
from ._arrays import compilable, deliver, destination
from ._jit import Task, device, task
from ._math import exp, log
from ._tasks import (
    Call,
    floats,
    free,
    integer,
    integers,
    number,
    rows,
    run,
    scratch,
    vector,
)
from .rows import exp_rows, row_sum

__all__ = ["bce_loss", "bce_with_logits", "mse_loss", "nll_loss", "softmax_cross_entropy"]

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
    tops, totals = scratch(logits.dtype, height), scratch(np.float64, height)
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
    free(tops)
    free(totals)
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
    weigh = _weigh_call(labels, weights, sums, ignore_index, classes, "softmax_cross_entropy")
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


def _weigh_call(
    labels: np.ndarray,
    weights: tuple[np.ndarray, int],
    sums: np.ndarray,
    ignore_index: int,
    classes: int,
    name: str,
) -> Call:
    return Call(
        _weigh,
        weights[0].dtype,
        1,
        (labels, len(labels), *weights, sums, len(sums), ignore_index, classes),
        writes=(sums,),
        refuse=lambda answer, arrays: raise_bad_label(arrays[0], answer - 1, classes, name),
    )


def _total_call(sums: np.ndarray, loss: np.ndarray, mode: int) -> Call:
    values = (sums, len(sums), loss, loss.size, mode)
    return Call(_total, loss.dtype, 1, values, writes=(loss,))


@task
def _nll_rows(args, i):
    """dlogp of some rows; sums[1 + n] = the loss of row n."""
    logp, labels, weight = rows(args, 0), integers(args, 3), vector(args, 5)
    dlogp, sums = rows(args, 7), floats(args, 10)
    ignore_index, reduction, height = integer(args, 12), integer(args, 13), integer(args, 14)
    T = logp.dtype.type
    divisor = T(sums[0]) if reduction == MEAN else T(1)
    for n in range(i * height, min((i + 1) * height, len(labels))):
        label = labels[n]
        dlogp[n, :] = 0
        sums[1 + n] = 0
        if label != ignore_index:
            share = weight[label] if weight.size else T(1)
            sums[1 + n] = -share * logp[n, label]
            dlogp[n, label] = -share / divisor
    return 0


def nll_loss(
    logp: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    out: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """-w_y logp[y] for each row, y its label, and the gradient: -w_y at y, 0 elsewhere.

    logp (N, C), labels (N,) int64, weight (C,) → loss () or (N,), dlogp (N, C). Raises ValueError
    for a label outside 0..C-1.
    """
    inputs = (logp,) if weight is None else (logp, weight)
    if not compilable(*inputs) or labels.dtype != np.int64:
        return reference.nll_loss(logp, labels, weight, ignore_index, reduction, out)
    check_cross_entropy(logp, labels, weight, 0.0, reduction, "nll_loss")
    inputs = (*inputs, labels)
    loss = destination(out[0], labels.shape if reduction == "none" else (), logp.dtype, *inputs)
    dlogp = destination(out[1], logp.shape, logp.dtype, *inputs)
    calls = nll_loss_calls(
        np.ascontiguousarray(logp),
        np.ascontiguousarray(labels),
        None if weight is None else np.ascontiguousarray(weight),
        ignore_index,
        reduction,
        (loss, dlogp),
    )
    assert calls is not None
    run(*calls)
    return deliver(loss, out[0]), deliver(dlogp, out[1])


def nll_loss_calls(
    logp: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    reduction: str,
    out: tuple[np.ndarray, np.ndarray],
) -> list[Call] | None:
    """``nll_loss`` as calls, or None if these arrays are not for compiled kernels."""
    loss, dlogp = out
    arrays = (logp, loss, dlogp) if weight is None else (logp, loss, dlogp, weight)
    direct = all(x.flags.c_contiguous for x in (*arrays, labels))
    if not direct or not compilable(*arrays) or labels.dtype != np.int64:
        return None
    (n, classes), mode = logp.shape, REDUCTIONS.index(reduction)
    sums = np.empty(1 + n)  # the total weight, and the loss of each row
    weights = (logp, 0) if weight is None else (weight, classes)
    height = max(1, CHUNK // max(1, classes))
    each = Call(
        _nll_rows,
        logp.dtype,
        -(-n // height),
        (
            logp, n, classes, labels, n, *weights, dlogp, n, classes, sums, len(sums),
            ignore_index, mode, height,
        ),
        writes=(dlogp, sums),
        nanoseconds=0.1 * logp.size + 2.0 * n,
    )  # fmt: skip
    weigh = _weigh_call(labels, weights, sums, ignore_index, classes, "nll_loss")
    return [weigh, each, _total_call(sums, loss, mode)]


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


# --- binary cross-entropy -------------------------------------------------------------------


@device
def _log1p(x):
    """log(1 + x) = log u + (x - (u - 1)) / u with u the rounded 1 + x: the second term makes good
    what the rounding lost (Higham, "Accuracy and Stability of Numerical Algorithms", 1.14.1)."""
    T = type(x)
    u = T(1) + x
    lost = (x - (u - T(1))) / u
    return log(u) + (lost if u > 0 else T(0))


# Each loop below holds one logarithm or exponential at most: more are no longer inlined, and a loop
# with a call is not made of vector instructions.


@device
def _bce_part(x, t, terms, d, scratch):
    """The losses of probabilities x and their derivatives d, of contiguous arrays of one length."""
    T = x.dtype.type
    for n in range(len(x)):
        terms[n] = log(x[n])
    for n in range(len(x)):
        scratch[n] = _log1p(-x[n])
    for n in range(len(x)):
        yes = terms[n] if terms[n] > T(-100) else T(-100)
        no = scratch[n] if scratch[n] > T(-100) else T(-100)
        terms[n] = (t[n] - T(1)) * no - t[n] * yes
    for n in range(len(x)):
        spread = x[n] * (T(1) - x[n])
        d[n] = (x[n] - t[n]) / (spread if spread > T(1e-12) else T(1e-12))


@device
def _bce_logits_part(x, t, q, terms, d, scratch):
    """The losses of scores x and their derivatives d; q are the weights of the positives."""
    T = x.dtype.type
    for n in range(len(x)):
        scratch[n] = exp(-abs(x[n]))
    for n in range(len(x)):
        terms[n] = _log1p(scratch[n])
    for n in range(len(x)):
        softplus = terms[n] + (T(0) if x[n] > 0 else -x[n])
        terms[n] = (T(1) - t[n]) * x[n] + (T(1) + (q[n] - T(1)) * t[n]) * softplus
    for n in range(len(x)):
        share = (scratch[n] if x[n] < 0 else T(1)) / (T(1) + scratch[n])
        d[n] = (q[n] * t[n] + T(1) - t[n]) * share - q[n] * t[n]


@device
def _finish(terms, d, weight, reduction, size):
    """Weigh the terms and their derivatives, in place; the sum of the terms."""
    for n in range(len(weight)):
        terms[n] *= weight[n]
        d[n] *= weight[n]
    if reduction == MEAN:
        divisor = terms.dtype.type(size)
        for n in range(len(d)):
            d[n] /= divisor
    return row_sum((terms,), ())


@task
def _bce_chunk(args, i):
    """dinput, and the terms or their sum, of a chunk; 1 if an input is outside 0..1."""
    input, target, weight = vector(args, 0), vector(args, 2), vector(args, 4)
    dinput, loss, sums = vector(args, 8), vector(args, 10), floats(args, 12)
    reduction = integer(args, 14)
    part = slice(i * CHUNK, (i + 1) * CHUNK)
    x, t, d = input[part], target[part], dinput[part]
    memory, size = scratch(x.dtype, 2 * len(x)), len(x)
    terms = loss[part] if reduction == NONE else memory[size:]
    outside = 0
    for n in range(size):
        outside |= 0 if x[n] >= 0 and x[n] <= 1 else 1
    _bce_part(x, t, terms, d, memory[:size])
    sums[1 + i] = _finish(terms, d, weight[part], reduction, len(input))
    free(memory)
    return outside


@task
def _bce_logits_chunk(args, i):
    """dinput, and the terms or their sum, of a chunk."""
    input, target, weight, pos_weight = (
        vector(args, 0), vector(args, 2), vector(args, 4), vector(args, 6),
    )  # fmt: skip
    dinput, loss, sums = vector(args, 8), vector(args, 10), floats(args, 12)
    reduction = integer(args, 14)
    part = slice(i * CHUNK, (i + 1) * CHUNK)
    x, t, d = input[part], target[part], dinput[part]
    memory, size = scratch(x.dtype, 3 * len(x)), len(x)
    if not pos_weight.size:
        memory[2 * size :] = 1
    q = pos_weight[part] if pos_weight.size else memory[2 * size :]
    terms = loss[part] if reduction == NONE else memory[size : 2 * size]
    _bce_logits_part(x, t, q, terms, d, memory[:size])
    sums[1 + i] = _finish(terms, d, weight[part], reduction, len(input))
    free(memory)
    return 0


def bce_loss(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    out: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy of probabilities with targets, and its gradient: the reference's formulas.

    input and target of one shape, to which weight broadcasts → loss () or, for "none", of that
    shape, dinput. Raises ValueError for an input outside 0..1.
    """
    inputs = [a for a in (input, target, weight) if a is not None]
    if not compilable(*inputs):
        return reference.bce_loss(input, target, weight, reduction, out)
    check_bce("bce_loss", input, target, reduction, weight=weight)
    return _run_bce(_bce_chunk, input, target, weight, None, reduction, out)


def bce_loss_calls(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    reduction: str,
    out: tuple[np.ndarray, np.ndarray],
) -> list[Call] | None:
    """``bce_loss`` as calls, or None if these arrays are not for compiled kernels."""
    return _bce_calls(_bce_chunk, input, target, weight, None, reduction, out)


def bce_with_logits(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    pos_weight: np.ndarray | None = None,
    reduction: str = "mean",
    out: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy of σ(input) with targets, and its gradient: the reference's formulas.

    input and target of one shape, to which weight and pos_weight broadcast → loss () or, for
    "none", of that shape, dinput.
    """
    inputs = [a for a in (input, target, weight, pos_weight) if a is not None]
    if not compilable(*inputs):
        return reference.bce_with_logits(input, target, weight, pos_weight, reduction, out)
    check_bce("bce_with_logits", input, target, reduction, weight=weight, pos_weight=pos_weight)
    return _run_bce(_bce_logits_chunk, input, target, weight, pos_weight, reduction, out)


def bce_with_logits_calls(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    pos_weight: np.ndarray | None,
    reduction: str,
    out: tuple[np.ndarray, np.ndarray],
) -> list[Call] | None:
    """``bce_with_logits`` as calls, or None if these arrays are not for compiled kernels."""
    return _bce_calls(_bce_logits_chunk, input, target, weight, pos_weight, reduction, out)


def _run_bce(
    chunk: Task,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    pos_weight: np.ndarray | None,
    reduction: str,
    out: tuple[np.ndarray | None, np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray]:
    shape, dtype = input.shape, input.dtype
    inputs = (input, target, weight, pos_weight)
    loss = destination(out[0], shape if reduction == "none" else (), dtype, *inputs)
    dinput = destination(out[1], shape, dtype, *inputs)
    full: Any = [
        None if a is None else np.ascontiguousarray(np.broadcast_to(a, shape)) for a in inputs
    ]
    x, t, w, q = full
    calls = _bce_calls(chunk, x, t, w, q, reduction, (loss, dinput))
    assert calls is not None
    run(*calls)
    return deliver(loss, out[0]), deliver(dinput, out[1])


def _bce_calls(
    chunk: Task,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    pos_weight: np.ndarray | None,
    reduction: str,
    out: tuple[np.ndarray, np.ndarray],
) -> list[Call] | None:
    """Either loss as calls; None too for weights that broadcast."""
    loss, dinput = out
    weights = [w for w in (weight, pos_weight) if w is not None]
    arrays = (input, target, *weights, loss, dinput)
    direct = all(x.flags.c_contiguous for x in arrays) and compilable(*arrays)
    if not direct or any(w.shape != input.shape for w in weights):
        return None
    n, mode = input.size, REDUCTIONS.index(reduction)
    chunks = -(-n // CHUNK)
    sums = np.empty(1 + chunks)
    sums[0] = n
    slots = [(input, 0) if w is None else (w, n) for w in (weight, pos_weight)]
    each = Call(
        chunk,
        input.dtype,
        chunks,
        (
            input, n, target, n, *slots[0], *slots[1], dinput, n, loss, loss.size, sums, len(sums),
            mode,
        ),
        writes=(dinput, sums, loss),
        nanoseconds=1.5 * n,
        refuse=lambda answer, arrays: reference.bce_loss(arrays[0], arrays[1]),  # names the input
    )  # fmt: skip
    return [each] if mode == NONE else [each, _total_call(sums, loss, mode)]
