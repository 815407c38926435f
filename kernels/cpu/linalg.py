"""Matrix products: their checks, and the gradients of ``linear``. gemm.py multiplies."""

from __future__ import annotations

import numpy as np

from .. import reference
from ..reference import check_linear, check_linear_backward
from ._arrays import compilable, deliver, destination
from ._jit import jit
from .elementwise import relu_backward
from .gemm import multiply

__all__ = ["linear", "linear_backward", "matmul"]


@jit("const(T[:, ::1]), T[::1]")
def _sum_rows(g, out):
    """out (K,) = Σₙ g (N, K), row after row."""
    out[:] = 0
    for n in range(g.shape[0]):
        row = g[n]
        for k in range(len(out)):
            out[k] += row[k]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The matrix product of (…, M, K) and (…, K, N) → (…, M, N); a one-dimensional operand is a
    row (left) or a column (right), and its axis is dropped from the result."""
    plain = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    if not plain or not compilable(a, b):
        return reference.matmul(a, b, out)
    y = destination(out, (a.shape[0], b.shape[1]), a.dtype, a, b)
    multiply(a, b, y)
    return deliver(y, out)


def linear(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    activation: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """x wᵀ + b, then ReLU if ``activation`` is "relu". x (N, D), w (K, D), b (K,) → (N, K)."""
    inputs = (x, w) if b is None else (x, w, b)
    if not compilable(*inputs):
        return reference.linear(x, w, b, activation, out)
    check_linear(x, w, b, activation)
    y = destination(out, (x.shape[0], w.shape[0]), x.dtype, *inputs)
    multiply(x, w.T, y, b, activation)
    return deliver(y, out)


def linear_backward(
    g: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    y: np.ndarray | None = None,
    activation: str | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] = (None, None, None),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The gradients of ``linear``: dx = g w, dw = gᵀ x, db = Σₙ g; None where not needed.

    With activation "relu", g is zeroed first where y <= 0; y is the output of ``linear``.
    """
    if not compilable(g, x, w):
        return reference.linear_backward(g, x, w, y, activation, needs, out)
    check_linear_backward(g, x, w, y, activation)
    inputs = (g, x, w, y)
    if y is not None and activation == "relu":
        g = relu_backward(g, y)
    dx = dw = db = None
    if needs[0]:
        dx = destination(out[0], x.shape, x.dtype, *inputs)
        multiply(g, w, dx)
        dx = deliver(dx, out[0])
    if needs[1]:
        dw = destination(out[1], w.shape, x.dtype, *inputs)
        multiply(g.T, x, dw)
        dw = deliver(dw, out[1])
    if needs[2]:
        db = destination(out[2], (w.shape[0],), x.dtype, *inputs)
        _sum_rows(np.ascontiguousarray(g), db)
        db = deliver(db, out[2])
    return dx, dw, db
