"""Elementwise kernels. They run on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import reference
from . import _math
from ._arrays import compilable, deliver, destination
from ._jit import Kernel, device, jit

__all__ = [
    "exp", "gelu", "gelu_backward", "log", "relu", "relu_backward", "sigmoid", "tanh",
]  # fmt: skip


@device
def clamp(v):
    """max(v, 0); NaN stays NaN."""
    return type(v)(0) if v <= 0 else v


@device
def shut(v, y):
    """0 where y <= 0, else v."""
    return type(v)(0) if y <= 0 else v


@jit("const(T[::1]), T[::1]")
def _relu(x, out):
    for i in range(len(out)):
        out[i] = clamp(x[i])


@jit("const(T[::1]), const(T[::1]), T[::1]")
def _relu_backward(g, y, out):
    for i in range(len(out)):
        out[i] = shut(g[i], y[i])


# The functions named …_part take contiguous arrays of one length: all of a kernel's, or a piece.


@device
def exp_part(x, out):
    for i in range(len(out)):
        out[i] = _math.exp(x[i])


@device
def log_part(x, out):
    for i in range(len(out)):
        out[i] = _math.log(x[i])


@device
def tanh_part(x, out):
    for i in range(len(out)):
        out[i] = _math.tanh(x[i])


@device
def sigmoid_part(x, out):
    for i in range(len(out)):
        out[i] = _math.sigmoid(x[i])


@device
def gelu_part(x, by_tanh, out):
    if by_tanh:
        for i in range(len(out)):
            out[i] = _math.gelu_tanh(x[i])
    else:
        for i in range(len(out)):
            out[i] = _math.gelu(x[i])


@device
def gelu_backward_part(g, x, by_tanh, out):
    if by_tanh:
        for i in range(len(out)):
            out[i] = g[i] * _math.gelu_tanh_slope(x[i])
    else:
        for i in range(len(out)):
            out[i] = g[i] * _math.gelu_slope(x[i])


@jit("const(T[::1]), T[::1]")
def _exp(x, out):
    exp_part(x, out)


@jit("const(T[::1]), T[::1]")
def _log(x, out):
    log_part(x, out)


@jit("const(T[::1]), T[::1]")
def _tanh(x, out):
    tanh_part(x, out)


@jit("const(T[::1]), T[::1]")
def _sigmoid(x, out):
    sigmoid_part(x, out)


@jit("const(T[::1]), boolean, T[::1]")
def _gelu(x, by_tanh, out):
    gelu_part(x, by_tanh, out)


@jit("const(T[::1]), const(T[::1]), boolean, T[::1]")
def _gelu_backward(g, x, by_tanh, out):
    gelu_backward_part(g, x, by_tanh, out)


def _unary(
    kernel: Kernel, otherwise: Callable[..., Any], x: np.ndarray, out: np.ndarray | None
) -> np.ndarray:
    if not compilable(x):
        return otherwise(x, out)
    y = destination(out, x.shape, x.dtype, x, elementwise=True)
    kernel(x.ravel(), y.reshape(-1))
    return deliver(y, out)


def exp(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """eˣ."""
    return _unary(_exp, reference.exp, x, out)


def log(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The natural logarithm; -inf at 0, NaN below."""
    return _unary(_log, reference.log, x, out)


def tanh(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The hyperbolic tangent."""
    return _unary(_tanh, reference.tanh, x, out)


def sigmoid(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """1 / (1 + e⁻ˣ)."""
    return _unary(_sigmoid, reference.sigmoid, x, out)


def relu(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    return _unary(_relu, reference.relu, x, out)


def relu_backward(g: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """0 where y <= 0, else g; y is relu's output (its input serves as well). At 0: 0; at NaN: g."""
    if not compilable(g, y) or g.shape != y.shape:
        return reference.relu_backward(g, y, out)
    dx = destination(out, g.shape, g.dtype, g, y, elementwise=True)
    _relu_backward(g.ravel(), y.ravel(), dx.reshape(-1))
    return deliver(dx, out)


def gelu(x: np.ndarray, approximate: str = "none", out: np.ndarray | None = None) -> np.ndarray:
    """x Φ(x), Φ the distribution function of the normal distribution (Hendrycks and Gimpel, 2016).

    For ``approximate`` "tanh": x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    """
    if not compilable(x) or approximate not in ("none", "tanh"):
        return reference.gelu(x, approximate, out)
    y = destination(out, x.shape, x.dtype, x, elementwise=True)
    _gelu(x.ravel(), approximate == "tanh", y.reshape(-1))
    return deliver(y, out)


def gelu_backward(
    g: np.ndarray, x: np.ndarray, approximate: str = "none", out: np.ndarray | None = None
) -> np.ndarray:
    """g · (Φ(x) + x e^(-x²/2)/√(2π)); the derivative of the other form for "tanh"."""
    compiled = compilable(g, x) and g.shape == x.shape and approximate in ("none", "tanh")
    if not compiled:
        return reference.gelu_backward(g, x, approximate, out)
    dx = destination(out, g.shape, g.dtype, g, x, elementwise=True)
    _gelu_backward(g.ravel(), x.ravel(), approximate == "tanh", dx.reshape(-1))
    return deliver(dx, out)
