"""Reductions. axis is None (all) or a tuple of ints that are not negative."""

from __future__ import annotations

from typing import Any

from ..autograd import Array, Function

Axes = tuple[int, ...] | None


def kept(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape after a reduction over ``axis`` that keeps the reduced axes as 1."""
    return tuple(1 if axis is None or i in axis else n for i, n in enumerate(shape))


class Sum(Function):
    """Σ x."""

    def forward(ctx, x: Array, axis: Axes, keepdim: bool) -> Array:
        ctx.kept = kept(x.shape, axis)
        return ctx.k.sum(x, axis, keepdim)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.expand(ctx.k.reshape(g, ctx.kept), ctx.shapes[0])


class Mean(Function):
    """Σ x / (n - correction)."""

    def forward(ctx, x: Array, axis: Axes, keepdim: bool, correction: int = 0) -> Array:
        ctx.kept, ctx.correction = kept(x.shape, axis), correction
        return ctx.k.mean(x, axis, keepdim, correction)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.mean_backward(ctx.k.reshape(g, ctx.kept), ctx.shapes[0], ctx.correction)


class Extremum(Function):
    """The largest or smallest element; equal ones share the gradient evenly."""

    kernel: str

    def forward(ctx, x: Array, axis: Axes, keepdim: bool) -> Array:
        y = getattr(ctx.k, ctx.kernel)(x, axis, True)
        ctx.axis = axis
        ctx.save(x, y)
        if keepdim:
            return y
        gone = range(x.ndim) if axis is None else axis
        return ctx.k.reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in gone))

    def backward(ctx, g: Array) -> Any:
        k, (x, y) = ctx.k, ctx.saved
        winners = k.cast(k.eq(x, y), x.dtype)
        share = k.div(k.reshape(g, y.shape), k.sum(winners, ctx.axis, True))
        return k.mul(winners, share)


class Amax(Extremum):
    """The largest element."""

    kernel = "amax"


class Amin(Extremum):
    """The smallest element."""

    kernel = "amin"


class Softmax(Function):
    """eˣ / Σ eˣ along an axis."""

    def forward(ctx, x: Array, axis: int) -> Array:
        y = ctx.k.softmax(x, axis)
        ctx.axis = axis
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:  # y (g - Σ g y)
        k, (y,) = ctx.k, ctx.saved
        return k.mul(y, k.sub(g, k.sum(k.mul(g, y), ctx.axis, True)))


class LogSoftmax(Function):
    """log softmax along an axis."""

    def forward(ctx, x: Array, axis: int) -> Array:
        y = ctx.k.log_softmax(x, axis)
        ctx.axis = axis
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:  # g - softmax · Σ g
        k, (y,) = ctx.k, ctx.saved
        return k.sub(g, k.mul(k.exp(y), k.sum(g, ctx.axis, True)))
