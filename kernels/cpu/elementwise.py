"""Elementwise kernels. They are bound by memory, so they run on one thread."""

from __future__ import annotations

import numpy as np

from .. import reference
from ._arrays import compilable, deliver, destination
from ._jit import device, jit

__all__ = ["relu", "relu_backward"]


@device
def clamp(v):
    """max(v, 0); NaN stays NaN."""
    return type(v)(0) if v <= 0 else v


@jit("const(T[::1]), T[::1]")
def _relu(x, out):
    for i in range(len(out)):
        out[i] = clamp(x[i])


@jit("const(T[::1]), const(T[::1]), T[::1]")
def _relu_backward(g, y, out):
    for i in range(len(out)):
        out[i] = type(g[i])(0) if y[i] <= 0 else g[i]


def relu(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    if not compilable(x):
        return reference.relu(x, out)
    y = destination(out, x.shape, x.dtype, x, elementwise=True)
    _relu(x.ravel(), y.reshape(-1))
    return deliver(y, out)


def relu_backward(g: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """0 where y <= 0, else g; y is relu's output (its input serves as well). At 0: 0; at NaN: g."""
    if not compilable(g, y) or g.shape != y.shape:
        return reference.relu_backward(g, y, out)
    dx = destination(out, g.shape, g.dtype, g, y, elementwise=True)
    _relu_backward(g.ravel(), y.ravel(), dx.reshape(-1))
    return deliver(dx, out)
