"""Ops that move elements: views, joins and selections."""

from __future__ import annotations

from typing import Any

from ..autograd import Array, Function


class Reshape(Function):
    """The elements in the same order under another shape."""

    view = True

    def forward(ctx, x: Array, shape: tuple[int, ...]) -> Array:
        return ctx.k.reshape(x, shape)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.reshape(g, ctx.shapes[0])


class Permute(Function):
    """The axes in another order."""

    view = True

    def forward(ctx, x: Array, axes: tuple[int, ...]) -> Array:
        ctx.inverse = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        return ctx.k.permute(x, axes)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.permute(g, ctx.inverse)


class Expand(Function):
    """x broadcast to a shape."""

    view = True

    def forward(ctx, x: Array, shape: tuple[int, ...]) -> Array:
        return ctx.k.expand(x, shape)

    def backward(ctx, g: Array) -> Any:
        return ctx.unbroadcast(g, 0)


class GetItem(Function):
    """x[index] of ints, slices, None and Ellipsis."""

    view = True

    def forward(ctx, x: Array, index: tuple[Any, ...]) -> Array:
        ctx.index = index
        return ctx.k.getitem(x, index)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.getitem_backward(g, ctx.index, ctx.shapes[0])


class SetItem(Function):
    """x with ``value`` broadcast into x[index], as a new array."""

    def forward(ctx, x: Array, value: Array, index: tuple[Any, ...]) -> Array:
        ctx.index = index
        y = ctx.k.copy(x)
        ctx.k.copy(value, out=ctx.k.getitem(y, index))
        return y

    def backward(ctx, g: Array) -> Any:
        k = ctx.k
        dx = dvalue = None
        if ctx.needs[0]:
            dx = k.copy(g)
            place = k.getitem(dx, ctx.index)
            k.copy(k.full((), 0, g.dtype), out=place)
        if ctx.needs[1]:
            dvalue = ctx.unbroadcast(k.getitem(g, ctx.index), 1)
        return dx, dvalue


class Cat(Function):
    """Tensors joined along an axis."""

    def forward(ctx, *arrays: Array, axis: int) -> Array:
        ctx.axis = axis
        return ctx.k.cat(arrays, axis)

    def backward(ctx, g: Array) -> Any:
        grads, start = [], 0
        for shape in ctx.shapes:
            assert shape is not None
            stop = start + shape[ctx.axis]
            index = (slice(None),) * ctx.axis + (slice(start, stop),)
            grads.append(ctx.k.getitem(g, index))
            start = stop
        return tuple(grads)


class IndexSelect(Function):
    """x's slices at int64 positions along an axis; a slice taken twice gets both gradients."""

    def forward(ctx, x: Array, index: Array, axis: int) -> Array:
        ctx.axis = axis
        ctx.save(index)
        return ctx.k.index_select(x, index, axis)

    def backward(ctx, g: Array) -> Any:
        (index,) = ctx.saved
        return ctx.k.index_select_backward(g, index, ctx.axis, ctx.shapes[0]), None


class Gather(Function):
    """x's elements at int64 positions along an axis."""

    def forward(ctx, x: Array, index: Array, axis: int) -> Array:
        ctx.axis = axis
        ctx.save(index)
        return ctx.k.gather(x, index, axis)

    def backward(ctx, g: Array) -> Any:
        (index,) = ctx.saved
        return ctx.k.gather_backward(g, index, ctx.axis, ctx.shapes[0]), None
