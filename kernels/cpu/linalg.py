"""Matrix products.

Every element of a product is summed over k in order, each term added by one fma, whatever tile,
thread or batch it falls in: a row's result never depends on its neighbours, bit for bit.

The rows of b are contiguous, so the innermost loop runs along a row of b and is vectorized: four
rows of the result take four terms of k each, sixteen fma for every eight vectors loaded. A block
of the result (ROWS × COLUMNS) is summed in a scratch array, over DEPTH terms at a time, so that
scratch and the rows of b stay in the L1 cache; its width is a constant, by which the compiler
knows that the four rows do not overlap.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .. import reference
from ..reference import check_linear
from ._arrays import compilable, deliver, destination
from ._intrinsics import fma
from ._jit import device, jit
from .elementwise import clamp, relu_backward

__all__ = ["linear", "linear_backward", "matmul"]

ROWS, COLUMNS, DEPTH = 16, 128, 64
PARALLEL_FLOPS = 1_000_000  # below this, starting the threads costs more than they save


@device
def _add_terms(a, i, k0, k1, b, j0, width, scratch):
    """scratch (4, COLUMNS) += a[i : i + 4, k0:k1] @ b[k0:k1, j0 : j0 + width].

    Rows past the end of a repeat its last row; nobody reads their sums.
    """
    last = a.shape[0] - 1
    r0, r1, r2, r3 = a[i], a[min(i + 1, last)], a[min(i + 2, last)], a[min(i + 3, last)]
    whole = k1 - (k1 - k0) % 4
    for k in range(k0, whole, 4):
        a00, a01, a02, a03 = r0[k], r0[k + 1], r0[k + 2], r0[k + 3]
        a10, a11, a12, a13 = r1[k], r1[k + 1], r1[k + 2], r1[k + 3]
        a20, a21, a22, a23 = r2[k], r2[k + 1], r2[k + 2], r2[k + 3]
        a30, a31, a32, a33 = r3[k], r3[k + 1], r3[k + 2], r3[k + 3]
        b0, b1, b2, b3 = b[k, j0:], b[k + 1, j0:], b[k + 2, j0:], b[k + 3, j0:]
        for j in range(width):
            v0, v1, v2, v3 = b0[j], b1[j], b2[j], b3[j]
            s0, s1 = scratch[j], scratch[COLUMNS + j]
            s2, s3 = scratch[2 * COLUMNS + j], scratch[3 * COLUMNS + j]
            scratch[j] = fma(a03, v3, fma(a02, v2, fma(a01, v1, fma(a00, v0, s0))))
            scratch[COLUMNS + j] = fma(a13, v3, fma(a12, v2, fma(a11, v1, fma(a10, v0, s1))))
            scratch[2 * COLUMNS + j] = fma(a23, v3, fma(a22, v2, fma(a21, v1, fma(a20, v0, s2))))
            scratch[3 * COLUMNS + j] = fma(a33, v3, fma(a32, v2, fma(a31, v1, fma(a30, v0, s3))))
    for k in range(whole, k1):
        a0, a1, a2, a3 = r0[k], r1[k], r2[k], r3[k]
        b0 = b[k, j0:]
        for j in range(width):
            v = b0[j]
            scratch[j] = fma(a0, v, scratch[j])
            scratch[COLUMNS + j] = fma(a1, v, scratch[COLUMNS + j])
            scratch[2 * COLUMNS + j] = fma(a2, v, scratch[2 * COLUMNS + j])
            scratch[3 * COLUMNS + j] = fma(a3, v, scratch[3 * COLUMNS + j])


@device
def _block(a, b, bias, relu, out, i0, j0):
    """out[i0 : i0 + ROWS, j0 : j0 + COLUMNS] = a @ b + bias there, through ReLU if wanted."""
    n, k = min(ROWS, a.shape[0] - i0), a.shape[1]
    width = min(COLUMNS, b.shape[1] - j0)
    scratch = np.zeros(ROWS * COLUMNS, out.dtype)
    for k0 in range(0, k, DEPTH):
        for r in range(0, n, 4):
            sums = scratch[r * COLUMNS : (r + 4) * COLUMNS]
            _add_terms(a, i0 + r, k0, min(k0 + DEPTH, k), b, j0, width, sums)
    for r in range(n):
        sums, bias_part, result = scratch[r * COLUMNS :], bias[j0:], out[i0 + r, j0:]
        for j in range(min(COLUMNS, len(result))):
            v = sums[j]
            if bias.size:
                v += bias_part[j]
            result[j] = clamp(v) if relu else v


@jit("const(T[:, :]), const(T[:, ::1]), const(T[::1]), boolean, T[:, ::1], boolean", parallel=True)
def _product(a, b, bias, relu, out, threads):
    """out (M, N) = a (M, K) @ b (K, N or more) + bias (N or 0), through ReLU if wanted."""
    down = (out.shape[0] + ROWS - 1) // ROWS
    blocks = down * ((out.shape[1] + COLUMNS - 1) // COLUMNS)
    if threads:
        for block in prange(blocks):
            _block(a, b, bias, relu, out, block % down * ROWS, block // down * COLUMNS)
    else:
        for block in range(blocks):
            _block(a, b, bias, relu, out, block % down * ROWS, block // down * COLUMNS)


@device
def _transpose_rows(w, out, j):
    last = len(w) - 1
    r0, r1, r2, r3 = w[j], w[min(j + 1, last)], w[min(j + 2, last)], w[min(j + 3, last)]
    r4, r5 = w[min(j + 4, last)], w[min(j + 5, last)]
    r6, r7 = w[min(j + 6, last)], w[min(j + 7, last)]
    for k in range(w.shape[1]):
        column = out[k, j : j + 8]
        column[0], column[1], column[2], column[3] = r0[k], r1[k], r2[k], r3[k]
        column[4], column[5], column[6], column[7] = r4[k], r5[k], r6[k], r7[k]


@jit("const(T[:, ::1]), T[:, ::1], boolean", parallel=True)
def _transpose(w, out, threads):
    """out (D, K or a little more) = w (K, D) transposed; the columns too many repeat the last row.

    Eight rows of w are read side by side, so that each write fills half a cache line.
    """
    if threads:
        for group in prange((len(w) + 7) // 8):
            _transpose_rows(w, out, group * 8)
    else:
        for group in range((len(w) + 7) // 8):
            _transpose_rows(w, out, group * 8)


@jit("const(T[:, ::1]), T[::1]")
def _sum_rows(g, out):
    """out (K,) = Σₙ g (N, K), row after row."""
    out[:] = 0
    for n in range(g.shape[0]):
        row = g[n]
        for k in range(len(out)):
            out[k] += row[k]


def _multiply(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None = None,
    activation: str | None = None,
) -> None:
    """out (M, N) = a (M, K) @ b (K, N), then bias and activation; out is C-contiguous."""
    threads = 2 * a.size * out.shape[1] >= PARALLEL_FLOPS
    if b.flags.c_contiguous or not b.T.flags.c_contiguous:
        b = np.ascontiguousarray(b)
    else:
        # Columns to a multiple of 16 leave the innermost loop no remainder.
        packed = np.empty((b.shape[0], -(-b.shape[1] // 16) * 16), b.dtype)
        _transpose(b.T, packed, threads)
        b = packed
    bias = np.empty(0, out.dtype) if bias is None else np.ascontiguousarray(bias)
    _product(a, b, bias, activation == "relu", out, threads)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The matrix product of (…, M, K) and (…, K, N) → (…, M, N); a one-dimensional operand is a
    row (left) or a column (right), and its axis is dropped from the result."""
    plain = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    if not plain or not compilable(a, b):
        return reference.matmul(a, b, out)
    y = destination(out, (a.shape[0], b.shape[1]), a.dtype, a, b)
    _multiply(a, b, y)
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
    _multiply(x, w.T, y, b, activation)
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
    check_linear(x, w, None, activation)
    if g.shape != (x.shape[0], w.shape[0]):
        raise ValueError(
            f"linear_backward: expected g [{x.shape[0]}, {w.shape[0]}], got {list(g.shape)}"
        )
    inputs = (g, x, w, y)
    if activation == "relu":
        if y is None:
            raise ValueError("linear_backward: activation 'relu' needs y, the output of linear")
        g = relu_backward(g, y)
    dx = dw = db = None
    if needs[0]:
        dx = destination(out[0], x.shape, x.dtype, *inputs)
        _multiply(g, w, dx)
        dx = deliver(dx, out[0])
    if needs[1]:
        dw = destination(out[1], w.shape, x.dtype, *inputs)
        _multiply(g.T, x, dw)
        dw = deliver(dw, out[1])
    if needs[2]:
        db = destination(out[2], (w.shape[0],), x.dtype, *inputs)
        _sum_rows(np.ascontiguousarray(g), db)
        db = deliver(db, out[2])
    return dx, dw, db
