"""Optimizer steps over flat arrays, with the reference's arithmetic, operation for operation.

Denormals never slow a step: gradients, their squares and moments below ``tiny`` become 0.
"""

from __future__ import annotations

import math

import numpy as np

from .. import reference
from ..reference import tiny
from ._arrays import compilable
from ._jit import device, task
from ._tasks import Call, floats, integer, number, run, vector
from .elementwise import chunk, chunks

__all__ = ["adam_step", "sgd_step"]


@device
def _overflow(found_inf):
    """Whether a flag is given, and set."""
    return len(found_inf) != 0 and found_inf[0] != 0


def _flag(found_inf: np.ndarray | None, state: np.ndarray) -> tuple[np.ndarray, int]:
    """``found_inf`` as two slots; none is an array without elements."""
    return (state, 0) if found_inf is None else (found_inf, 1)


@task
def _count_step(args, i):
    if not _overflow(floats(args, 2)):
        vector(args, 0)[1] += 1
    return 0


@device
def _flush(v, least):
    return type(v)(0) if abs(v) < least else v


@device
def _sgd(p, g, buf, lr, momentum, share, weight_decay, nesterov, least):
    for i in range(len(p)):
        d = g[i]
        if weight_decay != 0:
            d += weight_decay * p[i]
        d = _flush(d, least)
        if momentum != 0:
            b = _flush(momentum * buf[i] + share * d, least)
            buf[i] = b
            d = d + momentum * b if nesterov else b
        p[i] -= lr * d


@task
def _sgd_chunk(args, i):
    if _overflow(floats(args, 13)):
        return 0
    p, g, buf, state = vector(args, 0), vector(args, 2), vector(args, 4), floats(args, 6)
    momentum, dampening, weight_decay = number(args, 8), number(args, 9), number(args, 10)
    nesterov, least = integer(args, 11) != 0, number(args, 12)
    T = p.dtype.type
    share = T(1.0) if state[1] == 1 else T(1.0 - dampening)
    _sgd(
        chunk(p, i), chunk(g, i), chunk(buf, i),
        T(state[0]), T(momentum), share, T(weight_decay), nesterov, T(least),
    )  # fmt: skip
    return 0


@device
def _adam(
    p, g, m, v, step_size, correction, rest1, beta2, rest2, eps, weight_decay, shrink, least
):  # fmt: skip
    for i in range(len(p)):
        d = g[i]
        if weight_decay != 0:
            d += weight_decay * p[i]
        d = _flush(d, least)
        mean = _flush(m[i] + rest1 * (d - m[i]), least)
        square = _flush(beta2 * v[i] + rest2 * _flush(d * d, least), least)
        m[i] = mean
        v[i] = square
        p[i] = p[i] * shrink - step_size * (mean / (math.sqrt(square) * correction + eps))


@task
def _adam_chunk(args, i):
    if _overflow(floats(args, 16)):
        return 0
    p, g, m, v = vector(args, 0), vector(args, 2), vector(args, 4), vector(args, 6)
    state = floats(args, 8)
    beta1, beta2, eps = number(args, 10), number(args, 11), number(args, 12)
    weight_decay, decoupled, least = number(args, 13), integer(args, 14) != 0, number(args, 15)
    T = p.dtype.type
    lr, t = state[0], state[1]
    _adam(
        chunk(p, i), chunk(g, i), chunk(m, i), chunk(v, i),
        T(lr / (1 - beta1**t)), T(1 / math.sqrt(1 - beta2**t)),
        T(1 - beta1), T(beta2), T(1 - beta2), T(eps),
        T(0.0 if decoupled else weight_decay),
        T(1 - lr * weight_decay) if decoupled else T(1.0),
        T(least),
    )  # fmt: skip
    return 0


def _takes(state: np.ndarray, found_inf: np.ndarray | None, *arrays: np.ndarray) -> bool:
    """Whether the compiled step takes these arrays; the reference answers for all others."""
    size = arrays[0].shape
    flat = all(x.ndim == 1 and x.shape == size and x.flags.c_contiguous for x in arrays)
    return flat and _is_state(state, found_inf) and compilable(*arrays)


def _is_state(state: np.ndarray, found_inf: np.ndarray | None) -> bool:
    fits = state.shape == (2,) and (found_inf is None or found_inf.shape == ())
    given = (state,) if found_inf is None else (state, found_inf)
    return fits and all(x.dtype == np.float64 and x.flags.carray for x in given)


def count_step_calls(state: np.ndarray, found_inf: np.ndarray | None = None) -> list[Call] | None:
    """``count_step`` as a call."""
    if not _is_state(state, found_inf):
        return None
    values = (state, 2, *_flag(found_inf, state))
    return [Call(_count_step, state.dtype, 1, values, writes=(state,))]


def sgd_step(
    p: np.ndarray,
    g: np.ndarray,
    buf: np.ndarray | None,
    state: np.ndarray,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    found_inf: np.ndarray | None = None,
) -> None:
    """One step of SGD, in place on p and buf (PyTorch's form of momentum).

    p, g, buf: one-dimensional, of one length and dtype; state: float64 [lr, step]; found_inf:
    float64 (), where it is not 0 nothing changes.
    """
    options = (momentum, dampening, weight_decay, nesterov, found_inf)
    calls = sgd_step_calls(p, g, buf, state, *options)
    if calls is None:
        reference.sgd_step(p, g, buf, state, *options)
    else:
        run(*calls)


def sgd_step_calls(
    p: np.ndarray,
    g: np.ndarray,
    buf: np.ndarray | None,
    state: np.ndarray,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    found_inf: np.ndarray | None = None,
) -> list[Call] | None:
    """``sgd_step`` as a call, or None if the reference is to answer."""
    if not _takes(state, found_inf, p, g, *(() if buf is None else (buf,))):
        return None
    call = Call(
        _sgd_chunk,
        p.dtype,
        chunks(len(p)),
        (
            p, len(p), g, len(g), *((p, 0) if buf is None else (buf, len(buf))), state, 2,
            float(momentum), float(dampening), float(weight_decay), bool(nesterov), tiny(p.dtype),
            *_flag(found_inf, state),
        ),
        writes=(p,) if buf is None else (p, buf),
        nanoseconds=0.3 * len(p),
    )  # fmt: skip
    call.chunked = True
    return [call]


def adam_step(
    p: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    state: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
    found_inf: np.ndarray | None = None,
) -> None:
    """One step of Adam (Kingma and Ba, 2015), in place on p, m and v, in PyTorch's order; of AdamW
    if ``decoupled``.

    p, g, m, v: one-dimensional, of one length and dtype; state: float64 [lr, t], t from 1;
    found_inf: float64 (), where it is not 0 nothing changes.
    """
    options = (beta1, beta2, eps, weight_decay, decoupled, found_inf)
    calls = adam_step_calls(p, g, m, v, state, *options)
    if calls is None:
        reference.adam_step(p, g, m, v, state, *options)
    else:
        run(*calls)


def adam_step_calls(
    p: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    state: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
    found_inf: np.ndarray | None = None,
) -> list[Call] | None:
    """``adam_step`` as a call, or None if the reference is to answer."""
    if not _takes(state, found_inf, p, g, m, v):
        return None
    n = len(p)
    call = Call(
        _adam_chunk,
        p.dtype,
        chunks(len(p)),
        (
            p, n, g, n, m, n, v, n, state, 2,
            float(beta1), float(beta2), float(eps), float(weight_decay), bool(decoupled),
            tiny(p.dtype), *_flag(found_inf, state),
        ),
        writes=(p, m, v),
        nanoseconds=0.6 * n,
    )  # fmt: skip
    call.chunked = True
    return [call]
