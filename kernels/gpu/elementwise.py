"""Elementwise kernels over contiguous arrays. The reference serves what they do not take: other
strides, integers, and two operands that both broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import reference
from ..reference import Array, check_approximate
from ._arrays import compilable, deliver, destination
from ._launch import blocks_for, launch

__all__ = [
    "add", "div", "exp", "gelu", "gelu_backward", "log", "maximum", "minimum", "mul", "neg", "relu",
    "relu_backward", "sigmoid", "sqrt", "sub", "tanh",
]  # fmt: skip

THREADS = 256  # of a block
MOST_ELEMENTS = 2**31  # of a result that a smaller operand broadcasts to


def launch_flat(file: str, name: str, dtype: Any, n: int, args: tuple[Any, ...]) -> None:
    """Run a kernel whose threads take 16 bytes after 16 bytes of n elements."""
    launch(file, name, dtype, blocks_for(n, THREADS * max(16 // dtype.itemsize, 1)), THREADS, args)


def same_or(
    kernel: str,
    arrays: tuple[Array, ...],
    out: Array | None,
    otherwise: Callable[[], Array],
    file: str = "functions",
) -> Array:
    """The kernel over arrays of one shape; ``otherwise()`` where they are not for it."""
    if not compilable(*arrays) or any(x.shape != arrays[0].shape for x in arrays):
        return otherwise()
    x = arrays[0]
    y = destination(out, x.shape, x.dtype, *arrays, elementwise=True)
    launch_flat(file, kernel, x.dtype, x.size, (*arrays, y, x.size))
    return deliver(y, out)


# --- two operands that broadcast -------------------------------------------------------------


class Operands(NamedTuple):
    """An array of the result's shape and what it meets: an array of that shape, a smaller one, of
    which element i takes number i // inner % mid, or a plain number (``small`` None)."""

    full: Array
    small: Array | None
    number: float
    mid: int  # 0 for an array of full's shape
    inner: int
    swapped: bool  # the full one came second


def broadcast_place(small: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, int] | None:
    """(mid, inner), where element i of an array of shape ``full`` takes element i // inner % mid
    of one of shape ``small``; None where there are no such two numbers."""
    if len(small) > len(full):
        return None
    small = (1,) * (len(full) - len(small)) + small
    if any(n not in (1, m) for n, m in zip(small, full, strict=True)):
        return None
    own = [i for i, (n, m) in enumerate(zip(small, full, strict=True)) if n == m != 1]
    if not own:
        return 1, max(math.prod(full), 1)
    first, last = own[0], own[-1] + 1
    if small[first:last] != full[first:last]:  # dimensions that broadcast lie between
        return None
    return math.prod(full[first:last]), math.prod(full[last:])


def _operands(a: Any, b: Any) -> Operands | None:
    """a and b as the kernels take them, or None."""
    arrays = [x for x in (a, b) if hasattr(x, "shape")]
    if not compilable(*arrays):
        return None
    if len(arrays) == 1:
        number = b if arrays[0] is a else a
        if type(number) not in (bool, int, float):
            return None
        return Operands(arrays[0], None, float(number), 1, 1, arrays[0] is not a)
    if a.shape == b.shape:
        return Operands(a, b, 0.0, 0, 1, False)
    for full, small in ((a, b), (b, a)):
        place = broadcast_place(small.shape, full.shape)
        if place is not None and 0 < full.size < MOST_ELEMENTS:
            return Operands(full, small, 0.0, *place, full is b)
    return None


def _arithmetic(name: str, a: Any, b: Any, out: Array | None) -> Array:
    given = _operands(a, b)
    if given is None:
        return getattr(reference, name)(a, b, out)
    full, small, number, mid, inner, swapped = given
    y = destination(out, full.shape, full.dtype, a, b, elementwise=True)
    args = (full, small, number, y, full.size, mid, inner, swapped)
    launch_flat("elementwise", f"zip_{name}", full.dtype, full.size, args)
    return deliver(y, out)


def add(a: Array, b: Array, out: Array | None = None) -> Array:
    """a + b."""
    return _arithmetic("add", a, b, out)


def sub(a: Array, b: Array, out: Array | None = None) -> Array:
    """a - b."""
    return _arithmetic("sub", a, b, out)


def mul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a · b."""
    return _arithmetic("mul", a, b, out)


def div(a: Array, b: Array, out: Array | None = None) -> Array:
    """a / b of floating arrays; x / 0 is ±inf, 0 / 0 NaN."""
    return _arithmetic("div", a, b, out)


def maximum(a: Array, b: Array, out: Array | None = None) -> Array:
    """The larger of a and b; NaN where either is NaN."""
    return _arithmetic("maximum", a, b, out)


def minimum(a: Array, b: Array, out: Array | None = None) -> Array:
    """The smaller of a and b; NaN where either is NaN."""
    return _arithmetic("minimum", a, b, out)


# --- one operand, or several of one shape ----------------------------------------------------


def neg(x: Array, out: Array | None = None) -> Array:
    """-x."""
    return same_or("map_neg", (x,), out, lambda: reference.neg(x, out), "elementwise")


def sqrt(x: Array, out: Array | None = None) -> Array:
    """√x; NaN below 0."""
    return same_or("map_sqrt", (x,), out, lambda: reference.sqrt(x, out))


def exp(x: Array, out: Array | None = None) -> Array:
    """eˣ."""
    return same_or("map_exp", (x,), out, lambda: reference.exp(x, out))


def log(x: Array, out: Array | None = None) -> Array:
    """The natural logarithm; -inf at 0, NaN below."""
    return same_or("map_log", (x,), out, lambda: reference.log(x, out))


def sigmoid(x: Array, out: Array | None = None) -> Array:
    """1 / (1 + e⁻ˣ), by the form that does not overflow."""
    return same_or("map_sigmoid", (x,), out, lambda: reference.sigmoid(x, out))


def tanh(x: Array, out: Array | None = None) -> Array:
    """The hyperbolic tangent."""
    return same_or("map_tanh", (x,), out, lambda: reference.tanh(x, out))


def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0); NaN stays NaN."""
    return same_or("map_relu", (x,), out, lambda: reference.relu(x, out), "elementwise")


def relu_backward(g: Array, y: Array, out: Array | None = None) -> Array:
    """0 where y <= 0, else g; y is relu's output (its input serves as well). At 0: 0; at NaN: g."""

    def otherwise() -> Array:
        return reference.relu_backward(g, y, out)

    return same_or("zip_relu_backward", (g, y), out, otherwise, "elementwise")


def _ending(approximate: str) -> str:
    check_approximate(approximate)
    return "_tanh" if approximate == "tanh" else ""


def gelu(x: Array, approximate: str = "none", out: Array | None = None) -> Array:
    """x Φ(x), Φ the distribution function of the normal distribution (Hendrycks and Gimpel, 2016).

    For ``approximate`` "tanh": x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    """
    kernel = f"map_gelu{_ending(approximate)}"
    return same_or(kernel, (x,), out, lambda: reference.gelu(x, approximate, out))


def gelu_backward(g: Array, x: Array, approximate: str = "none", out: Array | None = None) -> Array:
    """g · (Φ(x) + x e^(-x²/2)/√(2π)); the derivative of the other form for "tanh"."""
    kernel = f"zip_gelu{_ending(approximate)}_backward"
    return same_or(kernel, (g, x), out, lambda: reference.gelu_backward(g, x, approximate, out))
