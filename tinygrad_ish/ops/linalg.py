"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

from ..autograd import Array, Function


class MatMul(Function):
    """(…, M, K) @ (…, K, N) → (…, M, N); the leading axes broadcast."""

    def forward(ctx, a: Array, b: Array) -> Array:
        ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return ctx.k.matmul(a, b)

    def backward(ctx, g: Array) -> Any:
        k, (a, b) = ctx.k, ctx.saved
        da = ctx.unbroadcast(k.matmul(g, _transposed(k, b)), 0) if ctx.needs[0] else None
        db = ctx.unbroadcast(k.matmul(_transposed(k, a), g), 1) if ctx.needs[1] else None
        return da, db


def _transposed(k: Any, x: Array) -> Array:
    n = x.ndim
    return k.permute(x, (*range(n - 2), n - 1, n - 2))


class Linear(Function):
    """x wᵀ + b, then ReLU if activation is "relu". x (…, D), w (K, D), b (K,) → (…, K)."""

    def forward(ctx, x: Array, w: Array, b: Array | None, activation: str | None) -> Array:
        ctx.activation = activation
        rows = ctx.k.reshape(x, _rows(x.shape))
        y = ctx.k.linear(rows, w, b, activation)
        y = ctx.k.reshape(y, (*x.shape[:-1], w.shape[0]))
        ctx.save(x, w, y if activation else None)
        return y

    def backward(ctx, g: Array) -> Any:
        k, (x, w, y) = ctx.k, ctx.saved
        dx, dw, db = k.linear_backward(
            k.reshape(g, _rows(g.shape)),
            k.reshape(x, _rows(x.shape)),
            w,
            None if y is None else k.reshape(y, _rows(y.shape)),
            ctx.activation,
            ctx.needs,
        )
        return None if dx is None else k.reshape(dx, x.shape), dw, db


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]
