"""Normalization."""

from __future__ import annotations

import math
from typing import Any

from ..autograd import Array, Function


class LayerNorm(Function):
    """Mean 0 and variance 1 over the axes of ``shape``, the last ones, then · weight + bias.

    x (…, *shape), weight and bias of ``shape`` or None.
    """

    def forward(
        ctx, x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...], eps: float
    ) -> Array:
        k, size = ctx.k, math.prod(shape)
        rows = k.reshape(x, (math.prod(x.shape[: x.ndim - len(shape)]), size))
        flat = [None if t is None else k.reshape(t, (size,)) for t in (weight, bias)]
        y, mean, rstd = k.layer_norm(rows, *flat, eps)
        ctx.save(x, weight, mean, rstd)
        ctx.rows = rows.shape
        return k.reshape(y, x.shape)

    def backward(ctx, g: Array) -> Any:
        k, (x, weight, mean, rstd) = ctx.k, ctx.saved
        rows, size = ctx.rows, ctx.rows[1:]
        grads = k.layer_norm_backward(
            k.reshape(g, rows),
            k.reshape(x, rows),
            mean,
            rstd,
            None if weight is None else k.reshape(weight, size),
            ctx.needs,
        )
        return tuple(
            None if d is None else k.reshape(d, shape)
            for d, shape in zip(grads, ctx.shapes, strict=True)
        )
