"""Losses: the value and its gradient in one pass, row after row."""

from __future__ import annotations

import math

import numpy as np

from .. import reference
from ..reference import REDUCTIONS, check_cross_entropy, check_mse, raise_bad_label
from ._arrays import compilable, deliver, destination
from ._jit import device, jit

__all__ = ["mse_loss", "softmax_cross_entropy"]

MEAN, SUM, NONE = (REDUCTIONS.index(name) for name in ("mean", "sum", "none"))


@device
def _total_weight(labels, weight, ignore_index, classes):
    """Σₙ w_y over the rows kept, and the first row whose label is out of range (or -1)."""
    total = 0.0
    for n in range(len(labels)):
        label = labels[n]
        if label != ignore_index:
            if label < 0 or label >= classes:
                return total, n
            total += weight[label] if weight.size else 1.0
    return total, -1


@device
def _softmax(x, p):
    """p = softmax(x); returns max x and log Σ e^(x - max x)."""
    top = x[0]
    for c in range(len(x)):
        top = max(top, x[c])
    total = 0.0
    for c in range(len(x)):
        p[c] = math.exp(x[c] - top)
        total += p[c]
    scale = type(top)(1 / total)
    for c in range(len(x)):
        p[c] *= scale
    return top, type(top)(math.log(total))


@jit("const(T[:, ::1]), const(int64[::1]), const(T[::1]), int64, float64, int64, T[::1], T[:, ::1]")
def _cross_entropy(logits, labels, weight, ignore_index, smoothing, reduction, loss, dlogits):
    """Returns the first row whose label is out of range, with nothing written, or -1."""
    classes = logits.shape[1]
    total, bad = _total_weight(labels, weight, ignore_index, classes)
    if bad >= 0:
        return bad
    T = logits.dtype.type
    smooth = T(smoothing / classes) if classes else T(0)
    divisor = T(total) if reduction == MEAN else T(1)
    weight_sum = T(classes)
    if weight.size:
        weight_sum = weight.sum()
    value = 0.0
    for n in range(len(labels)):
        x, d, label = logits[n], dlogits[n], labels[n]
        row_loss = T(0)
        if label == ignore_index:
            d[:] = 0
        else:
            top, log_total = _softmax(x, d)
            hard = T(1 - smoothing)
            if weight.size:
                hard *= weight[label]
            row_loss = -hard * (x[label] - top - log_total)
            scale = hard + smooth * weight_sum
            if smoothing:
                spread = 0.0
                for c in range(classes):
                    w = weight[c] if weight.size else T(1)
                    spread += w * (x[c] - top - log_total)
                    d[c] = scale * d[c] - smooth * w
                row_loss -= smooth * T(spread)
            else:
                for c in range(classes):
                    d[c] *= scale
            d[label] -= hard
            for c in range(classes):
                d[c] /= divisor
        if reduction == NONE:
            loss[n] = row_loss
        value += row_loss
    if reduction != NONE:
        loss[0] = T(value) / divisor
    return -1


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
    formulas. A row's sum of exponentials, and the sum of the rows, are added up in float64.

    logits (N, C) floating, labels (N,) int64, weight (C,) → loss () or (N,), dlogits (N, C).
    Raises ValueError for a label outside 0..C-1.
    """
    inputs = (logits,) if weight is None else (logits, weight)
    if not compilable(*inputs) or labels.dtype != np.int64:
        return reference.softmax_cross_entropy(
            logits, labels, weight, ignore_index, label_smoothing, reduction, out
        )
    check_cross_entropy(logits, labels, weight, label_smoothing, reduction)
    n, classes = logits.shape
    inputs = (*inputs, labels)
    loss = destination(out[0], (n,) if reduction == "none" else (), logits.dtype, *inputs)
    dlogits = destination(out[1], logits.shape, logits.dtype, *inputs)
    bad = _cross_entropy(
        np.ascontiguousarray(logits),
        np.ascontiguousarray(labels),
        np.empty(0, logits.dtype) if weight is None else np.ascontiguousarray(weight),
        int(ignore_index),
        float(label_smoothing),
        REDUCTIONS.index(reduction),
        loss.reshape(-1),
        dlogits,
    )
    if bad >= 0:
        raise_bad_label(labels, bad, classes)
    return deliver(loss, out[0]), deliver(dlogits, out[1])


@jit("const(T[::1]), const(T[::1]), int64, T[::1], T[::1]")
def _mse(input, target, reduction, loss, dinput):
    T = input.dtype.type
    divisor = T(len(input)) if reduction == MEAN else T(1)
    for i in range(len(input)):
        dinput[i] = T(2) * (input[i] - target[i]) / divisor
    if reduction == NONE:
        for i in range(len(input)):
            d = input[i] - target[i]
            loss[i] = d * d
    else:
        total = 0.0
        for i in range(len(input)):
            d = input[i] - target[i]
            total += d * d
        loss[0] = T(total) / divisor


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
    _mse(
        input.ravel(),
        target.ravel(),
        REDUCTIONS.index(reduction),
        loss.reshape(-1),
        dinput.reshape(-1),
    )
    return deliver(loss, out[0]), deliver(dinput, out[1])
