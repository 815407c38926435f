"""Losses: the value and its gradient in one pass over memory.

Blocks leave the sums of their terms, which ``total`` adds up in order; small inputs are done by one
block, in one launch. For "mean" of labelled rows ``label_weights`` finds the divisor first, so that
the gradient is written once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..reference import (
    REDUCTIONS,
    Array,
    check_bce,
    check_cross_entropy,
    check_mse,
    namespace,
)
from ._arrays import compilable, deliver, destination
from ._launch import launch
from .rows import LONGEST, MOST_THREADS, THREADS, Teams, power_of_two, sums_dtype, teams

__all__ = ["bce_loss", "bce_with_logits", "mse_loss", "nll_loss", "softmax_cross_entropy"]

Losses = tuple[Array, Array]
Outs = tuple[Array | None, Array | None]

FEW_BLOCKS = 4  # whose rows one block takes instead, in so many turns
CHUNK = 4096  # elements of a block, or more where that makes more than MOST_BLOCKS
MOST_BLOCKS = 1024
PARTS = 64  # at most, in which the weights of labels are added up: two for each lane of a warp
LABELS = 8192  # of a part, or more


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Outs = (None, None),
) -> Losses:
    """The cross-entropy of softmax(logits) with integer labels, and its gradient: the reference's
    formulas.

    logits (N, C) floating, labels (N,) int64, weight (C,) → loss () or (N,), dlogits (N, C).
    A label outside 0..C-1 gives a NaN loss.
    """
    check_cross_entropy(logits, labels, weight, label_smoothing, reduction)
    if not _launchable(logits, labels, weight):
        return reference.softmax_cross_entropy(
            logits, labels, weight, ignore_index, label_smoothing, reduction, out
        )
    by = teams(logits.shape[1], logits.dtype)
    constants: tuple[float, ...] = ()
    kernel = f"cross_entropy_{by.kind}"
    if label_smoothing:
        kernel, constants = "cross_entropy_smoothed", (float(label_smoothing),)
        by = Teams(0, max(32, min(MOST_THREADS, power_of_two(logits.shape[1] / 8))), 1)
    return _rows(kernel, by, logits, labels, weight, ignore_index, constants, reduction, out)


def nll_loss(
    logp: Array,
    labels: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    out: Outs = (None, None),
) -> Losses:
    """-w_y logp[y] for each row, y its label, and the gradient: -w_y at y, 0 elsewhere.

    logp (N, C), labels (N,) int64, weight (C,) → loss () or (N,), dlogp (N, C).
    """
    check_cross_entropy(logp, labels, weight, 0.0, reduction, "nll_loss")
    if not _launchable(logp, labels, weight):
        return reference.nll_loss(logp, labels, weight, ignore_index, reduction, out)
    packs = -(-logp.shape[1] * logp.dtype.itemsize // 16)
    lanes = min(THREADS, power_of_two(packs / 2))
    by = Teams(lanes, THREADS, THREADS // lanes)
    return _rows("nll_rows", by, logp, labels, weight, ignore_index, (), reduction, out)


def _launchable(x: Array, labels: Array, weight: Array | None) -> bool:
    fits = x.size > 0 and x.shape[1] < LONGEST and labels.dtype == np.int64
    return fits and labels.flags.c_contiguous and compilable(x, weight)


def _rows(
    kernel: str,
    by: Teams,
    x: Array,
    labels: Array,
    weight: Array | None,
    ignore_index: int,
    constants: tuple[float, ...],
    reduction: str,
    out: Outs,
) -> Losses:
    """A kernel over labelled rows. One block does few rows, and all else too, in one launch."""
    (n, classes), dtype, wide = x.shape, x.dtype, sums_dtype(x.dtype)
    inputs = (x, labels, weight)
    loss = destination(out[0], labels.shape if reduction == "none" else (), dtype, *inputs)
    dx = destination(out[1], x.shape, dtype, *inputs)
    blocks = -(-n // by.each)
    if by.lanes and blocks <= FEW_BLOCKS:
        blocks = 1
    sums = parts = None
    if blocks > 1 and reduction != "none":
        sums = namespace(x).empty(blocks, wide)
    if blocks > 1 and reduction == "mean":
        chunk = max(LABELS, -(-n // PARTS))
        parts = namespace(x).empty(-(-n // chunk), wide)
        args: tuple[Any, ...] = (labels, weight, parts, n, chunk, classes, ignore_index)
        launch("losses", "label_weights", dtype, len(parts), 1024, args)
    args = (x, labels, weight, dx, loss, sums, parts, _length(parts), n, classes)
    args += (by.lanes, ignore_index) if by.lanes else (ignore_index,)
    args += (*constants, REDUCTIONS.index(reduction))
    launch("losses", kernel, dtype, blocks, by.threads, args)
    if sums is not None:
        _total(sums, parts, loss, 1.0)
    return deliver(loss, out[0]), deliver(dx, out[1])


def _length(parts: Array | None) -> int:
    return 0 if parts is None else len(parts)


def _total(sums: Array, parts: Array | None, loss: Array, divisor: float) -> None:
    """loss = Σ sums / Σ parts, or / divisor where there are none."""
    args = (sums, parts, loss, len(sums), _length(parts), divisor)
    launch("elementwise_losses", "total", loss.dtype, 1, 256 if len(sums) <= 256 else 1024, args)


def mse_loss(
    input: Array, target: Array, reduction: str = "mean", out: Outs = (None, None)
) -> Losses:
    """(input - target)², and its gradient 2 (input - target), divided by n for "mean".

    Shapes are equal. The loss is () or, for "none", input's shape; dinput has input's shape.
    """
    check_mse(input, target, reduction)
    if not compilable(input, target):
        return reference.mse_loss(input, target, reduction, out)
    return _elements("mse", input, target, (), reduction, out)


def bce_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    out: Outs = (None, None),
) -> Losses:
    """The cross-entropy of probabilities with targets, and its gradient: the reference's formulas.

    input and target of one shape, to which weight broadcasts → loss () or, for "none", of that
    shape, dinput. An input outside 0..1 gives a NaN loss.
    """
    check_bce("bce_loss", input, target, reduction, weight=weight)
    if not compilable(input, target) or not _of_dtype(input.dtype, weight):
        return reference.bce_loss(input, target, weight, reduction, out)
    return _elements("bce", input, target, (weight,), reduction, out)


def bce_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
    out: Outs = (None, None),
) -> Losses:
    """The cross-entropy of σ(input) with targets, and its gradient: the reference's formulas.

    input and target of one shape, to which weight and pos_weight broadcast → loss () or, for
    "none", of that shape, dinput.
    """
    check_bce("bce_with_logits", input, target, reduction, weight=weight, pos_weight=pos_weight)
    if not compilable(input, target) or not _of_dtype(input.dtype, weight, pos_weight):
        return reference.bce_with_logits(input, target, weight, pos_weight, reduction, out)
    return _elements("bce_logits", input, target, (weight, pos_weight), reduction, out)


def _of_dtype(dtype: Any, *weights: Array | None) -> bool:
    return all(w is None or w.dtype == dtype for w in weights)


def _elements(
    kernel: str,
    input: Array,
    target: Array,
    weights: tuple[Array | None, ...],
    reduction: str,
    out: Outs,
) -> Losses:
    """A kernel over single elements; weights of another shape are copied to this one."""
    xp, shape, dtype = namespace(input), input.shape, input.dtype
    inputs = (input, target, *weights)
    loss = destination(out[0], shape if reduction == "none" else (), dtype, *inputs)
    dinput = destination(out[1], shape, dtype, *inputs)
    full = [None if w is None else xp.ascontiguousarray(xp.broadcast_to(w, shape)) for w in weights]
    blocks = max(1, min(MOST_BLOCKS, -(-input.size // CHUNK)))
    sums = None
    if blocks > 1 and reduction != "none":
        sums = xp.empty(blocks, sums_dtype(dtype))
    mode = REDUCTIONS.index(reduction)
    args = (input, target, *full, dinput, loss, sums, input.size, mode)
    launch("elementwise_losses", kernel, dtype, blocks, THREADS, args)
    if sums is not None:
        _total(sums, None, loss, float(input.size if reduction == "mean" else 1))
    return deliver(loss, out[0]), deliver(dinput, out[1])
