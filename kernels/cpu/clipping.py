"""The norm of gradients, and the factor that clips them.

Each array is summed in chunks, which its size alone decides; a last task adds up the chunks of an
array in order, and then the arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import reference
from ._arrays import compilable, deliver, destination
from ._jit import device, task
from ._lanes import magnitude, sums
from ._tasks import Call, floats, integers, number, run, vector

__all__ = ["clip_scale", "grad_norm"]

CHUNK = 8192  # elements in one task


def _square(builder: Any, elements: Any, numbers: Any) -> Any:
    return builder.fmul(elements[0], elements[0])


def _size(builder: Any, elements: Any, numbers: Any) -> Any:
    return magnitude(builder, elements[0])


_sum_of_squares = sums(_square, widen=True)
_sum_of_sizes = sums(_size, widen=True)


@device
def _larger(a, b):
    """The larger of a and b; NaN if either is."""
    return b if b > a or b != b else a


@device
def _power_sum(x, p):
    """Σ |x|ᵖ, or the largest |x|; float64."""
    if p == 2:
        return _sum_of_squares((x,), ())
    if p == 1:
        return _sum_of_sizes((x,), ())
    total = 0.0
    for n in range(len(x)):
        size = np.float64(abs(x[n]))
        total = _larger(total, size) if p == math.inf else total + size**p
    return total


@task
def _norm_chunk(args, i):
    x, parts, p = vector(args, 0), floats(args, 2), number(args, 4)
    parts[i] = _power_sum(x[i * CHUNK : (i + 1) * CHUNK], p)
    return 0


@task
def _norm_total(args, i):
    """Array k has the parts ends[k - 1] … ends[k] - 1."""
    parts, ends, out, p = floats(args, 0), integers(args, 2), vector(args, 4), number(args, 6)
    total, n = 0.0, 0
    for end in ends:
        own = 0.0
        for k in range(n, end):
            own = _larger(own, parts[k]) if p == math.inf else own + parts[k]
        total = _larger(total, own) if p == math.inf else total + own
        n = end
    out[0] = total if p == math.inf else total ** (1 / p)
    return 0


def grad_norm(
    arrays: tuple[np.ndarray, ...], norm_type: float, out: np.ndarray | None = None
) -> np.ndarray:
    """(Σ |x|ᵖ)^(1/p) over all elements of all arrays, p = ``norm_type`` > 0; for infinity the
    largest |x|. () of the arrays' dtype. The sums are float64."""
    if not compilable(*arrays):
        return reference.grad_norm(arrays, norm_type, out)
    norm = destination(out, (), arrays[0].dtype, *arrays)
    calls = grad_norm_calls(tuple(np.ascontiguousarray(x) for x in arrays), norm_type, norm)
    assert calls is not None
    run(*calls)
    return deliver(norm, out)


def grad_norm_calls(
    arrays: tuple[np.ndarray, ...], norm_type: float, out: np.ndarray
) -> list[Call] | None:
    """``grad_norm`` as calls, or None if these arrays are not for compiled kernels."""
    if not all(x.flags.c_contiguous for x in (*arrays, out)) or not compilable(*arrays, out):
        return None
    counts = [-(-x.size // CHUNK) for x in arrays]
    ends, p = np.cumsum(counts), float(norm_type)
    parts = np.empty(sum(counts))
    calls = []
    for x, count, end in zip(arrays, counts, ends, strict=True):
        own = parts[end - count : end]
        calls.append(Call(
            _norm_chunk,
            x.dtype,
            count,
            (x, x.size, own, count, p),
            writes=(own,),
            nanoseconds=(0.1 if p in (1, 2) else 10.0) * x.size,
        ))  # fmt: skip
    values = (parts, len(parts), ends, len(ends), out, 1, p)
    return [*calls, Call(_norm_total, out.dtype, 1, values, writes=(out,))]


@task
def _clip_scale(args, i):
    total, most, out = vector(args, 0)[0], number(args, 2), vector(args, 3)
    T = type(total)
    scale = T(most) / (total + T(1e-6))
    out[0] = T(1) if scale > T(1) else scale
    return 0


def clip_scale(total: np.ndarray, max_norm: float, out: np.ndarray | None = None) -> np.ndarray:
    """min(1, max_norm / (total + 10⁻⁶)); NaN if total is. total () → ()."""
    if not compilable(total):
        return reference.clip_scale(total, max_norm, out)
    scale = destination(out, (), total.dtype, total)
    calls = clip_scale_calls(total, max_norm, scale)
    assert calls is not None
    run(*calls)
    return deliver(scale, out)


def clip_scale_calls(total: np.ndarray, max_norm: float, out: np.ndarray) -> list[Call] | None:
    """``clip_scale`` as a call, or None if these arrays are not for compiled kernels."""
    if not compilable(total, out) or total.size != 1:
        return None
    values = (total, 1, float(max_norm), out, 1)
    return [Call(_clip_scale, total.dtype, 1, values, writes=(out,))]
