"""Optimizer steps over flat arrays, with the reference's arithmetic, operation for operation.

Denormals never slow a step: gradients, their squares and moments below ``tiny`` become 0.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .. import reference
from ..reference import tiny
from ._arrays import compilable
from ._jit import device, jit

__all__ = ["adam_step", "sgd_step"]

CHUNK = 8192  # elements in one piece of work
PARALLEL_SIZE = 4 * CHUNK  # below this, starting the threads costs more than they save


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


@jit(
    "T[::1], const(T[::1]), T[::1], const(float64[:]), "
    "float64, float64, float64, boolean, float64, boolean",
    parallel=True,
)
def _sgd_step(p, g, buf, state, momentum, dampening, weight_decay, nesterov, least, threads):
    T = p.dtype.type
    lr, mu, decay, least = T(state[0]), T(momentum), T(weight_decay), T(least)
    share = T(1.0) if state[1] == 1 else T(1.0 - dampening)
    if threads:
        for chunk in prange((len(p) + CHUNK - 1) // CHUNK):
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            _sgd(p[part], g[part], buf[part], lr, mu, share, decay, nesterov, least)
    else:
        _sgd(p, g, buf, lr, mu, share, decay, nesterov, least)


@device
def _adam(p, g, m, v, step_size, root_correction, rest1, beta2, rest2, eps, weight_decay, least):
    for i in range(len(p)):
        d = g[i]
        if weight_decay != 0:
            d += weight_decay * p[i]
        d = _flush(d, least)
        mean = _flush(m[i] + rest1 * (d - m[i]), least)
        square = _flush(beta2 * v[i] + rest2 * _flush(d * d, least), least)
        m[i] = mean
        v[i] = square
        p[i] -= step_size * (mean / (math.sqrt(square) / root_correction + eps))


@jit(
    "T[::1], const(T[::1]), T[::1], T[::1], const(float64[:]), "
    "float64, float64, float64, float64, float64, boolean",
    parallel=True,
)
def _adam_step(p, g, m, v, state, beta1, beta2, eps, weight_decay, least, threads):
    T = p.dtype.type
    lr, t = state[0], state[1]
    step_size, root_correction = T(lr / (1 - beta1**t)), T(math.sqrt(1 - beta2**t))
    rest1, rest2, beta2 = T(1 - beta1), T(1 - beta2), T(beta2)
    eps, decay, least = T(eps), T(weight_decay), T(least)
    if threads:
        for chunk in prange((len(p) + CHUNK - 1) // CHUNK):
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            _adam(
                p[part], g[part], m[part], v[part],
                step_size, root_correction, rest1, beta2, rest2, eps, decay, least,
            )  # fmt: skip
    else:
        _adam(
            p, g, m, v,
            step_size, root_correction, rest1, beta2, rest2, eps, decay, least,
        )  # fmt: skip


def _takes(state: np.ndarray, *arrays: np.ndarray) -> bool:
    """Whether the compiled step takes these arrays; the reference answers for all others."""
    size = arrays[0].shape
    flat = all(x.ndim == 1 and x.shape == size and x.flags.c_contiguous for x in arrays)
    return flat and state.shape == (2,) and state.dtype == np.float64 and compilable(*arrays)


def sgd_step(
    p: np.ndarray,
    g: np.ndarray,
    buf: np.ndarray | None,
    state: np.ndarray,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One step of SGD, in place on p and buf (PyTorch's form of momentum).

    p, g, buf: one-dimensional, of one length and dtype; state: float64 [lr, step].
    """
    if not _takes(state, p, g, *(() if buf is None else (buf,))):
        reference.sgd_step(p, g, buf, state, momentum, dampening, weight_decay, nesterov)
        return
    _sgd_step(
        p,
        g,
        np.empty(0, p.dtype) if buf is None else buf,
        state,
        float(momentum),
        float(dampening),
        float(weight_decay),
        bool(nesterov),
        tiny(p.dtype),
        len(p) >= PARALLEL_SIZE,
    )


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
) -> None:
    """One step of Adam (Kingma and Ba, 2015), in place on p, m and v, in PyTorch's order.

    p, g, m, v: one-dimensional, of one length and dtype; state: float64 [lr, t], t from 1.
    """
    if not _takes(state, p, g, m, v):
        reference.adam_step(p, g, m, v, state, beta1, beta2, eps, weight_decay)
        return
    _adam_step(
        p,
        g,
        m,
        v,
        state,
        float(beta1),
        float(beta2),
        float(eps),
        float(weight_decay),
        tiny(p.dtype),
        len(p) >= PARALLEL_SIZE,
    )
