"""Matrix products: their checks, and the gradients of ``linear``. gemm.py multiplies."""

from __future__ import annotations

import numpy as np

from .. import reference
from ..reference import check_linear, check_linear_backward
from ._arrays import compilable, deliver, destination
from ._jit import task
from ._tasks import Call, free, integer, rows, run, scratch, vector
from .elementwise import relu_backward, relu_backward_calls
from .gemm import product

__all__ = ["linear", "linear_backward", "matmul"]

COLUMNS = 64  # that one task sums


@task
def _sum_rows(args, i):
    g, added = rows(args, 0), integer(args, 5) != 0
    part = slice(i * COLUMNS, (i + 1) * COLUMNS)
    out = vector(args, 3)[part]
    sums = scratch(out.dtype, len(out)) if added else out
    sums[:] = 0
    for n in range(g.shape[0]):
        row = g[n, part]
        for k in range(len(sums)):
            sums[k] += row[k]
    if added:
        for k in range(len(out)):
            out[k] += sums[k]
        free(sums)
    return 0


def sum_rows(g: np.ndarray, out: np.ndarray, added: bool = False) -> Call:
    """out (K,) = Σₙ g (N, K), row after row, as a call; or the sum is ``added`` to out."""
    n, k = g.shape
    return Call(
        _sum_rows,
        out.dtype,
        -(-k // COLUMNS),
        (g, n, k, out, k, added),
        writes=(out,),
        nanoseconds=0.1 * n * k,
    )


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The matrix product of (…, M, K) and (…, K, N) → (…, M, N); a one-dimensional operand is a
    row (left) or a column (right), and its axis is dropped from the result."""
    plain = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    if not plain or not compilable(a, b):
        return reference.matmul(a, b, out)
    y = destination(out, (a.shape[0], b.shape[1]), a.dtype, a, b)
    run(product(a, b, y))
    return deliver(y, out)


def matmul_calls(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> list[Call] | None:
    """``matmul`` as calls, or None if it is not for compiled kernels on these arrays."""
    plain = a.ndim == b.ndim == 2 and compilable(a, b) and out.flags.carray
    return [product(a, b, out)] if plain else None


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
    bias = None if b is None else np.ascontiguousarray(b)
    run(product(x, w.T, y, bias, activation))
    return deliver(y, out)


def linear_calls(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    activation: str | None,
    out: np.ndarray,
) -> list[Call] | None:
    """``linear`` as calls, or None if it is not for compiled kernels on these arrays."""
    inputs = (x, w) if b is None else (x, w, b)
    direct = (b is None or b.flags.c_contiguous) and out.flags.carray
    return [product(x, w.T, out, b, activation)] if direct and compilable(*inputs) else None


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
        run(product(g, w, dx))
        dx = deliver(dx, out[0])
    if needs[1]:
        dw = destination(out[1], w.shape, x.dtype, *inputs)
        run(product(g.T, x, dw))
        dw = deliver(dw, out[1])
    if needs[2]:
        db = destination(out[2], (w.shape[0],), x.dtype, *inputs)
        run(sum_rows(np.ascontiguousarray(g), db))
        db = deliver(db, out[2])
    return dx, dw, db


def linear_backward_calls(
    g: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    y: np.ndarray | None,
    activation: str | None,
    needs: tuple[bool, bool, bool],
    out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
    gate: np.ndarray | None = None,
    added: tuple[bool, bool, bool] = (False, False, False),
) -> list[Call] | None:
    """``linear_backward`` as calls, or None if it is not for compiled kernels on these arrays.

    dx is 0 where ``gate``, the output of a ReLU below, is not positive. What is ``added`` is added
    to what stands in out.
    """
    inputs = [a for a in (g, x, w, y, *out) if a is not None]
    direct = g.flags.c_contiguous and all(o is None or o.flags.carray for o in (*out, y))
    if not direct or not compilable(*inputs):
        return None
    dx, dw, db = (o if needed else None for o, needed in zip(out, needs, strict=True))
    calls = []
    if y is not None and activation == "relu":
        masked = np.empty_like(g)
        calls += relu_backward_calls(g, y, masked) or []
        g = masked
    if dw is not None:
        calls.append(product(g.T, x, dw, added=added[1]))
    if dx is not None:
        calls.append(product(g, w, dx, gate=gate))
    if db is not None:
        calls.append(sum_rows(g, db, added[2]))
    return calls
