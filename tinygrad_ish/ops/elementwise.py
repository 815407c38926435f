"""Elementwise ops. a and b broadcast, or one of them is a plain number."""

from __future__ import annotations

from typing import Any

from ..autograd import Array, Function


class Add(Function):
    """a + b."""

    def forward(ctx, a: Array, b: Array) -> Array:
        return ctx.k.add(a, b)

    def backward(ctx, g: Array) -> Any:
        da = ctx.unbroadcast(g, 0) if ctx.needs[0] else None
        db = ctx.unbroadcast(g, 1) if ctx.needs[1] else None
        return da, db


class Sub(Function):
    """a - b."""

    def forward(ctx, a: Array, b: Array) -> Array:
        return ctx.k.sub(a, b)

    def backward(ctx, g: Array) -> Any:
        da = ctx.unbroadcast(g, 0) if ctx.needs[0] else None
        db = ctx.unbroadcast(ctx.k.neg(g), 1) if ctx.needs[1] else None
        return da, db


class Mul(Function):
    """a · b."""

    def forward(ctx, a: Array, b: Array) -> Array:
        ctx.save(a if ctx.needs[1] else None, b if ctx.needs[0] else None)
        return ctx.k.mul(a, b)

    def backward(ctx, g: Array) -> Any:
        a, b = ctx.saved
        da = ctx.unbroadcast(ctx.k.mul(g, b), 0) if ctx.needs[0] else None
        db = ctx.unbroadcast(ctx.k.mul(g, a), 1) if ctx.needs[1] else None
        return da, db


class Div(Function):
    """a / b."""

    def forward(ctx, a: Array, b: Array) -> Array:
        ctx.save(a if ctx.needs[1] else None, b)
        return ctx.k.div(a, b)

    def backward(ctx, g: Array) -> Any:
        k, (a, b) = ctx.k, ctx.saved
        da = ctx.unbroadcast(k.div(g, b), 0) if ctx.needs[0] else None
        db = None
        if ctx.needs[1]:  # -g · a/b²
            db = ctx.unbroadcast(k.neg(k.div(k.mul(g, k.div(a, b)), b)), 1)
        return da, db


class Remainder(Function):
    """a - b·⌊a / b⌋; the derivative is that of the piece: 1 and -⌊a / b⌋."""

    def forward(ctx, a: Array, b: Array) -> Array:
        if ctx.needs[1]:
            ctx.save(a, b)
        return ctx.k.remainder(a, b)

    def backward(ctx, g: Array) -> Any:
        k = ctx.k
        da = ctx.unbroadcast(g, 0) if ctx.needs[0] else None
        db = None
        if ctx.needs[1]:
            a, b = ctx.saved
            db = ctx.unbroadcast(k.neg(k.mul(g, k.floor_div(a, b))), 1)
        return da, db


class Pow(Function):
    """a to the power b. The gradient to a is 0 where b is 0, that to b is 0 where a is 0 ≤ b."""

    def forward(ctx, a: Array, b: Array) -> Array:
        y = ctx.k.pow(a, b)
        ctx.save(a, b, y if ctx.needs[1] else None)
        return y

    def backward(ctx, g: Array) -> Any:
        k, (a, b, y) = ctx.k, ctx.saved
        da = db = None
        if ctx.needs[0]:  # b aᵇ⁻¹
            d = k.mul(k.pow(a, k.sub(b, 1) if hasattr(b, "shape") else b - 1), b)
            if hasattr(b, "shape"):
                d = k.where(k.eq(b, 0), k.mul(a, 0), d)
            elif b == 0:
                d = k.full(d.shape, 0, d.dtype)
            da = ctx.unbroadcast(k.mul(g, d), 0)
        if ctx.needs[1]:  # aᵇ log a
            base = a if hasattr(a, "shape") else k.full((), a, y.dtype)
            d = k.mul(y, k.log(base))
            kink = k.bitwise_and(k.eq(base, 0), k.ge(b, 0))
            db = ctx.unbroadcast(k.mul(g, k.where(kink, k.full((), 0, y.dtype), d)), 1)
        return da, db


class Maximum(Function):
    """The larger of a and b; where they are equal, each takes half of the gradient."""

    def forward(ctx, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return ctx.k.maximum(a, b)

    def backward(ctx, g: Array) -> Any:
        a, b = ctx.saved
        return _to_winner(ctx, g, ctx.k.gt(a, b))


class Minimum(Function):
    """The smaller of a and b; where they are equal, each takes half of the gradient."""

    def forward(ctx, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return ctx.k.minimum(a, b)

    def backward(ctx, g: Array) -> Any:
        a, b = ctx.saved
        return _to_winner(ctx, g, ctx.k.lt(a, b))


def _to_winner(ctx: Function, g: Array, wins: Array) -> Any:
    """g to a where it wins, g/2 where it ties (or either is NaN), the rest to b."""
    k, (a, b) = ctx.k, ctx.saved
    half, zero = k.mul(g, 0.5), k.mul(g, 0)
    tie = k.eq(a, b)
    da = k.where(tie, half, k.where(wins, g, zero))
    db = k.where(tie, half, k.where(wins, zero, g))
    return (
        ctx.unbroadcast(da, 0) if ctx.needs[0] else None,
        ctx.unbroadcast(db, 1) if ctx.needs[1] else None,
    )


class Where(Function):
    """a where the condition holds, else b."""

    def forward(ctx, condition: Array, a: Array, b: Array) -> Array:
        ctx.save(condition)
        return ctx.k.where(condition, a, b)

    def backward(ctx, g: Array) -> Any:
        k, (condition,) = ctx.k, ctx.saved
        zero = k.full((), 0, g.dtype)
        da = ctx.unbroadcast(k.where(condition, g, zero), 1) if ctx.needs[1] else None
        db = ctx.unbroadcast(k.where(condition, zero, g), 2) if ctx.needs[2] else None
        return None, da, db


class Neg(Function):
    """-x."""

    def forward(ctx, x: Array) -> Array:
        return ctx.k.neg(x)

    def backward(ctx, g: Array) -> Any:
        return ctx.k.neg(g)


class Abs(Function):
    """|x|; the gradient at 0 is 0."""

    def forward(ctx, x: Array) -> Array:
        ctx.save(x)
        return ctx.k.abs(x)

    def backward(ctx, g: Array) -> Any:
        (x,) = ctx.saved
        return ctx.k.mul(g, ctx.k.sign(x))


class Sqrt(Function):
    """√x; the gradient at 0 is infinite."""

    def forward(ctx, x: Array) -> Array:
        y = ctx.k.sqrt(x)
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:
        (y,) = ctx.saved
        return ctx.k.div(g, ctx.k.mul(y, 2))


class Exp(Function):
    """eˣ."""

    def forward(ctx, x: Array) -> Array:
        y = ctx.k.exp(x)
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:
        (y,) = ctx.saved
        return ctx.k.mul(g, y)


class Log(Function):
    """The natural logarithm."""

    def forward(ctx, x: Array) -> Array:
        ctx.save(x)
        return ctx.k.log(x)

    def backward(ctx, g: Array) -> Any:
        (x,) = ctx.saved
        return ctx.k.div(g, x)


class Sigmoid(Function):
    """1 / (1 + e⁻ˣ)."""

    def forward(ctx, x: Array) -> Array:
        y = ctx.k.sigmoid(x)
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:  # y (1 - y)
        k, (y,) = ctx.k, ctx.saved
        return k.mul(k.mul(g, y), k.sub(1, y))


class Tanh(Function):
    """The hyperbolic tangent."""

    def forward(ctx, x: Array) -> Array:
        y = ctx.k.tanh(x)
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:  # 1 - y²
        k, (y,) = ctx.k, ctx.saved
        return k.mul(g, k.sub(1, k.mul(y, y)))


class ReLU(Function):
    """max(x, 0); the gradient at 0 is 0."""

    def forward(ctx, x: Array) -> Array:
        y = ctx.k.relu(x)
        ctx.save(y)
        return y

    def backward(ctx, g: Array) -> Any:
        (y,) = ctx.saved
        return ctx.k.relu_backward(g, y)


class GELU(Function):
    """x Φ(x), or its form with tanh."""

    def forward(ctx, x: Array, approximate: str) -> Array:
        ctx.approximate = approximate
        ctx.save(x)
        return ctx.k.gelu(x, approximate)

    def backward(ctx, g: Array) -> Any:
        (x,) = ctx.saved
        return ctx.k.gelu_backward(g, x, ctx.approximate)


class Dropout(Function):
    """x / (1 - p), or 0 with probability p; the gradient is dropped in the same places."""

    def forward(ctx, x: Array, p: float, state: Array) -> Array:
        ctx.p, ticket = p, ctx.k.draw(state)
        ctx.save(ticket)
        return ctx.k.dropout(x, ticket, p)

    def backward(ctx, g: Array) -> Any:
        (ticket,) = ctx.saved
        return ctx.k.dropout(g, ticket, ctx.p)


class Clone(Function):
    """The same values in memory of their own."""

    def forward(ctx, x: Array) -> Array:
        return ctx.k.copy(x)

    def backward(ctx, g: Array) -> Any:
        return g


class Cast(Function):
    """The same values in another dtype; the gradient comes back in x's. ``made``: the result, where
    it is known."""

    def forward(ctx, x: Array, dtype: Any, made: Array | None = None) -> Array:
        ctx.from_dtype = x.dtype
        return ctx.k.cast(x, dtype) if made is None else made

    def backward(ctx, g: Array) -> Any:
        return ctx.k.cast(g, ctx.from_dtype)
