"""The norm of gradients, the factor that clips them, and loss scaling.

Sums are made in two stages: of each array in chunks that its length alone fixes, then of the chunks
in their order. So a norm is the same bits on every GPU and for every alignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import reference
from ..reference import Array, namespace
from ._arrays import compilable, deliver, destination
from ._launch import launch
from .optimizers import is_flag, is_state

__all__ = ["clip_scale", "grad_norm", "scale_step", "unscale_step"]

CHUNK = 8192  # elements for a block, as in clipping.cu
TOGETHER = 8  # arrays in one launch, as many as its parameters are for
THREADS = 256
FILE = "clipping"
NORMS = {1.0: "norm_sizes", 2.0: "norm_squares", math.inf: "norm_largest"}


def _eights(arrays: tuple[Array, ...]) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Some arrays at a time: the first block and the number of blocks, and the arrays and their
    lengths as a kernel's parameters."""
    start = 0
    for i in range(0, len(arrays), TOGETHER):
        some = arrays[i : i + TOGETHER]
        blocks = sum(-(-x.size // CHUNK) for x in some)
        values = [value for x in some for value in (x, x.size)]
        yield start, blocks, (*values, *(None, 0) * (TOGETHER - len(some)))
        start += blocks


def grad_norm(arrays: tuple[Array, ...], norm_type: float, out: Array | None = None) -> Array:
    """(Σ |x|ᵖ)^(1/p) over all elements of all arrays, p = ``norm_type`` > 0; for infinity the
    largest |x|. () of the arrays' dtype. The sums are float64."""
    if not compilable(*arrays):
        return reference.grad_norm(arrays, norm_type, out)
    dtype, p = arrays[0].dtype, float(norm_type)
    norm = destination(out, (), dtype, *arrays)
    count = sum(-(-x.size // CHUNK) for x in arrays)
    parts = namespace(norm).empty((count,), np.float64)
    for start, blocks, values in _eights(arrays):
        name = NORMS.get(p, "norm_powers")
        launch(FILE, name, dtype, blocks, THREADS, (parts[start:], p, *values))
    launch(FILE, "norm_total", dtype, 1, THREADS, (parts, count, p, norm))
    return deliver(norm, out)


def clip_scale(total: Array, max_norm: float, out: Array | None = None) -> Array:
    """min(1, max_norm / (total + 10⁻⁶)); NaN if total is. total () → ()."""
    if total.size != 1 or not compilable(total):
        return reference.clip_scale(total, max_norm, out)
    scale = destination(out, total.shape, total.dtype, total)
    launch(FILE, "clip_scale", total.dtype, 1, 1, (total, float(max_norm), scale))
    return deliver(scale, out)


def unscale_step(grads: tuple[Array, ...], state: Array, found_inf: Array) -> None:
    """g ← g · (1/scale) for each of grads, in place; found_inf ← whether one of them held an
    infinity or NaN before. state: float64 [scale, count]; found_inf: float64 ()."""
    if not (compilable(*grads) and is_state(state) and is_flag(found_inf)):
        return reference.unscale_step(grads, state, found_inf)
    dtype = grads[0].dtype
    launch(FILE, "clear", dtype, 1, 1, (found_inf,))
    for _, blocks, values in _eights(grads):
        launch(FILE, "unscale", dtype, blocks, THREADS, (state, found_inf, *values))


def scale_step(
    state: Array, found_inf: Array, growth_factor: float, backoff_factor: float, interval: int
) -> None:
    """The scale for the next step, in place on state: float64 [scale, count]."""
    if not (is_state(state) and is_flag(found_inf)):
        return reference.scale_step(state, found_inf, growth_factor, backoff_factor, interval)
    values = (state, found_inf, float(growth_factor), float(backoff_factor), int(interval))
    launch(FILE, "scale_step", np.float32, 1, 1, values)
