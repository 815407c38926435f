"""What each kernel of a program takes, and the shapes and dtypes it gives.

A program comes from a file that may be hostile, so nothing of it runs before ``check`` has followed
its shapes from node to node. The promise: where ``infer`` accepts, the reference kernel
(``kernels/reference.py``) runs on arrays of these metas, gives exactly these shapes and dtypes, and
takes no more memory than a small multiple of its arrays (an axis of length 0 counted as 1). Only
values are left to the kernel: an index out of range, an integer divided by 0, a negative power of
an integer. The rules are narrower than NumPy where a recorded forward needs no more: lengths are
never -1, dtypes never mixed, steps never negative.

To add a kernel: a row in ``_FORWARD`` or ``_GRADIENT`` below, that is the kernel, the function that
gives its results, and the kind of each argument by its name in the reference (all but ``out``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..dtypes import SUPPORTED, bool_, float32, int8, int64, rank
from ..program import VIEWS
from ..weights import printable
from .graph import Dim, Graph, Node, ProgramError, Ref, at_batch

__all__ = ["FORWARD", "GRADIENT", "KERNELS", "Meta", "check", "infer"]

# NumPy's limit is 64, but ``gather`` indexes with an array for each axis, of which it takes fewer.
NDIM_LIMIT = 32
SIZE_LIMIT = 2**63 - 1  # bytes
# What msgpack can hold.
INT_LEAST, INT_MOST = -(2**63), 2**64 - 1


class Meta(NamedTuple):
    """What is known of an array before it is there."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


Results: TypeAlias = "tuple[Meta | None, ...]"


def _wrong(argument: str, expected: str, *got: Any) -> ProgramError:
    return ProgramError(f"{argument}: expected {expected}, got {', '.join(map(_shown, got))}")


def _shown(x: Any, inside: bool = False) -> str:
    """A value for a message: short, and safe whatever it is."""
    if type(x) is tuple and not inside:
        more = ", ..." if len(x) > 8 else "," * (len(x) == 1)
        return f"({', '.join(_shown(a, True) for a in x[:8])}{more})"
    if type(x) is slice and all(n is None or _is_int(n) for n in (x.start, x.stop, x.step)):
        return repr(x)
    if x is None or x is Ellipsis or type(x) in (bool, float) or _is_int(x):
        return repr(x)
    if type(x) is str:
        return ascii(x[:40])
    if _is_meta(x) or isinstance(x, np.dtype):
        return str(x)
    return f"a {type(x).__name__}"


# --- kinds of arguments ----------------------------------------------------------------------


class _Kind(NamedTuple):
    """What an argument can be: in words, as a test, and whether the batch may stand in it."""

    name: str
    fits: Callable[[Any], bool]
    dims: bool = False


_DTYPES = frozenset(SUPPORTED)

ANY, NUMERIC, INTEGRAL, FLOATING = "biuf", "iuf", "biu", "f"
_WORDS = {
    ANY: "an array",
    NUMERIC: "an array of numbers, not bool",
    INTEGRAL: "a bool or integer array",
    FLOATING: "a floating array",
}


def _is_int(x: Any, least: int = INT_LEAST) -> bool:
    return type(x) is int and least <= x <= INT_MOST


def _is_number(x: Any) -> bool:
    return type(x) in (bool, float) or _is_int(x)


def _is_shape(x: Any) -> bool:
    return type(x) is tuple and len(x) <= NDIM_LIMIT and all(_is_int(n, 0) for n in x)


def _is_meta(x: Any) -> bool:
    known = type(x) is Meta and isinstance(x.dtype, np.dtype) and x.dtype in _DTYPES
    return known and _is_shape(x.shape) and _bytes(x) <= SIZE_LIMIT


def _is_part(x: Any) -> bool:
    """Whether x is a part of a basic index."""
    if type(x) is slice:
        ends = all(n is None or _is_int(n) for n in (x.start, x.stop))
        return ends and (x.step is None or _is_int(x.step, 1))
    return x is None or x is Ellipsis or _is_int(x)


def _bytes(x: Meta) -> int:
    """The memory of an array, were its axes of length 0 of length 1: kernels make indices of the
    other axes."""
    return math.prod(max(n, 1) for n in x.shape) * x.dtype.itemsize


def _array(kinds: str = ANY, ndim: int | None = None) -> _Kind:
    axes = "" if ndim is None else f" of {ndim} {'axis' if ndim == 1 else 'axes'}"

    def fits(x: Any) -> bool:
        return _is_meta(x) and x.dtype.kind in kinds and ndim in (None, len(x.shape))

    return _Kind(_WORDS[kinds] + axes, fits)


def _operand(kinds: str = ANY) -> _Kind:
    array = _array(kinds)
    return _Kind(f"{array.name}, or a number", lambda x: array.fits(x) or _is_number(x))


def _optional(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.name}, or None", lambda x: x is None or kind.fits(x))


def _tuple_of(what: str, fits: Callable[[Any], bool], dims: bool = False) -> _Kind:
    return _Kind(f"a tuple of {what}", lambda x: type(x) is tuple and all(map(fits, x)), dims)


def _one_of(*values: str | None) -> _Kind:
    names = " or ".join(map(repr, values))
    return _Kind(names, lambda x: (x is None or type(x) is str) and x in values)


ARRAYS = _tuple_of("arrays, not empty", _is_meta)._replace(
    fits=lambda x: type(x) is tuple and len(x) > 0 and all(map(_is_meta, x))
)
CONDITION = _Kind("a bool array", lambda x: _is_meta(x) and x.dtype == bool_)
POSITIONS = _Kind("an int64 array", lambda x: _is_meta(x) and x.dtype == int64)
NUMBER = _Kind("a number", lambda x: type(x) is float or _is_int(x))
INT = _Kind("an int", _is_int)
COUNT = _Kind("an int of 0 or more", lambda x: _is_int(x, 0))
FLAG = _Kind("True or False", lambda x: type(x) is bool)
AXES = _tuple_of("ints", _is_int)
AXIS = _Kind("None, an int or a tuple of ints", lambda x: x is None or _is_int(x) or AXES.fits(x))
SHAPE = _Kind(f"a shape, up to {NDIM_LIMIT} ints of 0 or more", _is_shape, dims=True)
INDEX = _tuple_of("ints, slices with positive steps, None and Ellipsis", _is_part, dims=True)
DTYPE = _Kind("a dtype", lambda x: isinstance(x, np.dtype) and x in _DTYPES)
APPROXIMATE = _one_of("none", "tanh")
ACTIVATION = _one_of(None, "relu")
NEEDS = _Kind(
    "a tuple of three bools",
    lambda x: type(x) is tuple and len(x) == 3 and all(type(n) is bool for n in x),
)


# --- what the rules share --------------------------------------------------------------------


def _result(shape: tuple[int, ...], dtype: np.dtype) -> Meta:
    result = Meta(shape, dtype)
    if not _is_meta(result):
        raise ProgramError(
            f"the result: expected up to {NDIM_LIMIT} axes and {SIZE_LIMIT} bytes, got "
            f"{dtype.name} of the shape {_shown(shape)}"
        )
    return result


def _one_dtype(**arrays: Meta | None) -> np.dtype:
    given = [x for x in arrays.values() if x is not None]
    if any(x.dtype != given[0].dtype for x in given):
        raise _wrong(", ".join(arrays), "arrays of one dtype", *arrays.values())
    return given[0].dtype


def _fits(argument: str, x: Meta | None, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if x is not None and x != (shape, dtype):
        raise _wrong(argument, f"{dtype.name}{list(shape)}", x)


def _broadcast(names: str, *arrays: Meta) -> tuple[int, ...]:
    shape = []
    for lengths in zip_longest(*[reversed(x.shape) for x in arrays], fillvalue=1):
        longer = {n for n in lengths if n != 1}
        if len(longer) > 1:
            raise _wrong(names, "shapes that broadcast", *arrays)
        shape.append(longer.pop() if longer else 1)
    return tuple(reversed(shape))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    lead = len(to) - len(shape)
    return lead >= 0 and all(n in (1, m) for n, m in zip(shape, to[lead:]))


def _axis(axis: int, ndim: int) -> int:
    """The axis counted from 0."""
    if not -ndim <= axis < ndim:
        raise _wrong("axis", f"an axis of an array of {ndim} axes", axis)
    return axis % ndim


def _reduced(x: Meta, axis: Any, keepdims: bool) -> tuple[int, ...]:
    gone = _axes(axis, len(x.shape))
    if keepdims:
        return tuple(1 if i in gone else n for i, n in enumerate(x.shape))
    return tuple(n for i, n in enumerate(x.shape) if i not in gone)


def _axes(axis: Any, ndim: int) -> set[int]:
    if axis is None:
        return set(range(ndim))
    given = axis if type(axis) is tuple else (axis,)
    found = {_axis(a, ndim) for a in given}
    if len(found) < len(given):
        raise _wrong("axis", "each axis once", axis)
    return found


def _refuse_nothing(x: Meta, axis: Any) -> None:
    if any(x.shape[a] == 0 for a in _axes(axis, len(x.shape))):
        raise _wrong("x", "elements to compare along axis", x)


# --- rules -----------------------------------------------------------------------------------
# Arguments are of the kinds that the table says. Each gives the results of its kernel.


def _same(x: Meta) -> Results:
    return (x,)


def _relu_backward(g: Meta, y: Meta) -> Results:
    _fits("y", y, *g)
    return (g,)


def _gelu(x: Meta, approximate: str) -> Results:
    return (x,)


def _gelu_backward(g: Meta, x: Meta, approximate: str) -> Results:
    _fits("x", x, *g)
    return (g,)


def _cast(x: Meta, dtype: np.dtype) -> Results:
    return (_result(x.shape, dtype),)


def _met(a: Any, b: Any) -> Meta:
    """What two arrays, or one and a number of no higher kind, are together."""
    arrays = {name: x for name, x in (("a", a), ("b", b)) if type(x) is Meta}
    if not arrays:
        raise _wrong("a, b", "an array among them", a, b)
    dtype = _one_dtype(**arrays)
    for name, x in (("a", a), ("b", b)):
        if type(x) is not Meta and (bool, int, float).index(type(x)) > rank(dtype):
            raise _wrong(name, f"a number of the kind of {dtype.name}", x)
    return _result(_broadcast("a, b", *arrays.values()), dtype)


def _compared(a: Any, b: Any) -> Results:
    return (_met(a, b)._replace(dtype=bool_),)


def _binary(a: Any, b: Any) -> Results:
    return (_computed(a, b),)


def _computed(a: Any, b: Any) -> Meta:
    met = _met(a, b)
    for name, x in (("a", a), ("b", b)):
        if type(x) is int and met.dtype.kind in "iu":
            info = np.iinfo(met.dtype)
            if not info.min <= x <= info.max:
                raise _wrong(name, f"a number that fits {met.dtype.name}", x)
    return met


def _divided(a: Any, b: Any) -> Results:
    met = _computed(a, b)
    if met.dtype.kind != "f" and type(b) is not Meta and b == 0:
        raise _wrong("b", "a divisor of integers that is not 0", b)
    return (met,)


def _power(a: Any, b: Any) -> Results:
    met = _computed(a, b)
    if met.dtype.kind != "f" and type(b) is not Meta and b < 0:
        raise _wrong("b", "an exponent of integers that is not negative", b)
    return (met,)


def _where(condition: Meta, a: Meta, b: Meta) -> Results:
    return (_result(_broadcast("condition, a, b", condition, a, b), _one_dtype(a=a, b=b)),)


def _sum(x: Meta, axis: Any, keepdims: bool) -> Results:
    dtype = x.dtype if x.dtype.kind == "f" else int64
    return (_result(_reduced(x, axis, keepdims), dtype),)


def _sum_to(x: Meta, shape: tuple[int, ...]) -> Results:
    if not _broadcasts(shape, x.shape):
        raise _wrong("shape", f"a shape that broadcasts to {list(x.shape)}", shape)
    return (_result(shape, x.dtype),)


def _mean(x: Meta, axis: Any, keepdims: bool, correction: int) -> Results:
    return (_result(_reduced(x, axis, keepdims), x.dtype),)


def _mean_backward(g: Meta, shape: tuple[int, ...], correction: int) -> Results:
    if len(g.shape) != len(shape) or not _broadcasts(g.shape, shape):
        raise _wrong("g", f"{list(shape)} with 1 for the axes of the mean", g)
    return (_result(shape, g.dtype),)


def _extreme(x: Meta, axis: Any, keepdims: bool) -> Results:
    _refuse_nothing(x, axis)
    return (_result(_reduced(x, axis, keepdims), x.dtype),)


def _place(x: Meta, axis: int | None, keepdims: bool) -> Results:
    _refuse_nothing(x, axis)
    return (_result(_reduced(x, axis, keepdims), int64),)


def _truth(x: Meta, axis: Any, keepdims: bool) -> Results:
    return (_result(_reduced(x, axis, keepdims), bool_),)


def _softmax(x: Meta, axis: int) -> Results:
    _axis(axis, len(x.shape))
    return (x,)


def _reshape(x: Meta, shape: tuple[int, ...]) -> Results:
    if math.prod(shape) != math.prod(x.shape):
        raise _wrong("shape", f"a shape of {math.prod(x.shape)} elements", shape)
    return (_result(shape, x.dtype),)


def _permute(x: Meta, axes: tuple[int, ...]) -> Results:
    if sorted(axes) != list(range(len(x.shape))):
        raise _wrong("axes", f"each of the {len(x.shape)} axes once, counted from 0", axes)
    return (_result(tuple(x.shape[a] for a in axes), x.dtype),)


def _expand(x: Meta, shape: tuple[int, ...]) -> Results:
    if not _broadcasts(x.shape, shape):
        raise _wrong("shape", f"a shape that {list(x.shape)} broadcasts to", shape)
    return (_result(shape, x.dtype),)


def _getitem(x: Meta, index: tuple[Any, ...]) -> Results:
    return (_result(_indexed(x.shape, index), x.dtype),)


def _indexed(shape: tuple[int, ...], index: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of x[index]."""
    dots = sum(p is Ellipsis for p in index)
    used = len(index) - dots - sum(p is None for p in index)
    if used > len(shape) or dots > 1:
        raise _wrong("index", f"up to {len(shape)} ints and slices and one Ellipsis", index)
    left, found = list(shape), []
    for p in index if dots else (*index, Ellipsis):
        if p is None:
            found.append(1)
        elif p is Ellipsis:
            rest = len(shape) - used
            found += left[:rest]
            del left[:rest]
        elif type(p) is slice:
            found.append(len(range(*p.indices(left.pop(0)))))
        else:
            n = left.pop(0)
            if not -n <= p < n:
                raise _wrong("index", f"an int from {-n} to {n - 1} for an axis of {n}", p)
    return tuple(found)


def _getitem_backward(g: Meta, index: tuple[Any, ...], shape: tuple[int, ...]) -> Results:
    _fits("g", g, _indexed(shape, index), g.dtype)
    return (_result(shape, g.dtype),)


def _cat(arrays: tuple[Meta, ...], axis: int) -> Results:
    first = arrays[0]
    at = _axis(axis, len(first.shape))
    for x in arrays:
        alike = len(x.shape) == len(first.shape) and x.dtype == first.dtype
        if not alike or _without(x.shape, at) != _without(first.shape, at):
            raise _wrong("arrays", f"arrays like {first} but for axis {at}", x)
    length = sum(x.shape[at] for x in arrays)
    return (_result((*first.shape[:at], length, *first.shape[at + 1 :]), first.dtype),)


def _index_select(x: Meta, index: Meta, axis: int) -> Results:
    return (_result(_selected(x.shape, index.shape, axis), x.dtype),)


def _selected(shape: tuple[int, ...], index: tuple[int, ...], axis: int) -> tuple[int, ...]:
    at = _axis(axis, len(shape))
    _refuse_no_place(shape[at], index)
    return (*shape[:at], *index, *shape[at + 1 :])


def _without(shape: tuple[int, ...], at: int) -> tuple[int, ...]:
    return shape[:at] + shape[at + 1 :]


def _refuse_no_place(n: int, index: tuple[int, ...]) -> None:
    if n == 0 and 0 not in index:
        raise _wrong("index", "no elements, as the axis it selects from has none", index)


def _index_select_backward(g: Meta, index: Meta, axis: int, shape: tuple[int, ...]) -> Results:
    _fits("g", g, _selected(shape, index.shape, axis), g.dtype)
    return (_result(shape, g.dtype),)


def _gather(x: Meta, index: Meta, axis: int) -> Results:
    _check_gathered(x.shape, index.shape, axis)
    return (_result(index.shape, x.dtype),)


def _check_gathered(shape: tuple[int, ...], index: tuple[int, ...], axis: int) -> None:
    at = _axis(axis, len(shape))
    if len(index) != len(shape) or _without(index, at) != _without(shape, at):
        raise _wrong("index", f"the shape {list(shape)} but for axis {at}", index)
    _refuse_no_place(shape[at], index)


def _gather_backward(g: Meta, index: Meta, axis: int, shape: tuple[int, ...]) -> Results:
    _check_gathered(shape, index.shape, axis)
    _fits("g", g, index.shape, g.dtype)
    return (_result(shape, g.dtype),)


def _matmul(a: Meta, b: Meta) -> Results:
    dtype = _one_dtype(a=a, b=b)
    if not a.shape or not b.shape:
        raise _wrong("a, b", "at least one axis", a, b)
    rows = a.shape[-2:-1]  # of a vector none
    inner, columns = (b.shape[-2], b.shape[-1:]) if len(b.shape) > 1 else (b.shape[0], ())
    if a.shape[-1] != inner:
        raise _wrong("a, b", "(…, M, K) and (…, K, N)", a, b)
    lead = _broadcast("a, b", Meta(a.shape[:-2], dtype), Meta(b.shape[:-2], dtype))
    return (_result((*lead, *rows, *columns), dtype),)


def _linear(x: Meta, w: Meta, b: Meta | None, activation: str | None) -> Results:
    dtype, (n, d), (k, _) = x.dtype, x.shape, w.shape
    _fits("w", w, (k, d), dtype)
    _fits("b", b, (k,), dtype)
    return (_result((n, k), dtype),)


def _linear_int8(x: Meta, w8: Meta, scale: Meta, b: Meta | None, activation: str | None) -> Results:
    (n, d), (k, _) = x.shape, w8.shape
    _fits("w8", w8, (k, d), int8)
    _fits("scale", scale, (k,), np.promote_types(x.dtype, float32))
    _fits("b", b, (k,), x.dtype)
    return (_result((n, k), x.dtype),)


def _linear_backward(
    g: Meta, x: Meta, w: Meta, y: Meta | None, activation: str | None, needs: tuple[bool, ...]
) -> Results:
    (result,) = _linear(x, w, None, activation)
    assert result is not None
    _fits("g", g, *result)
    _fits("y", y, *result)
    if activation and y is None:
        raise _wrong("y", f"{result}, the output of linear, for activation {activation!r}", y)
    return _needed(needs, x, w, _result(w.shape[:1], x.dtype))


def _needed(needs: tuple[bool, ...], *results: Meta) -> Results:
    return tuple(r if needed else None for r, needed in zip(results, needs))


def _layer_norm(x: Meta, weight: Meta | None, bias: Meta | None, eps: float) -> Results:
    _fits("weight", weight, x.shape[1:], x.dtype)
    _fits("bias", bias, x.shape[1:], x.dtype)
    statistic = _result(x.shape[:1], x.dtype)
    return x, statistic, statistic


def _layer_norm_backward(
    g: Meta, x: Meta, mean: Meta, rstd: Meta, weight: Meta | None, needs: tuple[bool, ...]
) -> Results:
    _fits("g", g, *x)
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        _fits(name, statistic, x.shape[:1], x.dtype)
    _fits("weight", weight, x.shape[1:], x.dtype)
    of_columns = _result(x.shape[1:], x.dtype)
    return _needed(needs, x, of_columns, of_columns)


# --- the table -------------------------------------------------------------------------------


class _Rule(NamedTuple):
    results: Callable[..., Results]
    kinds: dict[str, _Kind]


def _rules(names: str, results: Callable[..., Results], **kinds: _Kind) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), _Rule(results, kinds))


_REDUCED = {"axis": AXIS, "keepdims": FLAG}

_FORWARD = (
    # elementwise
    _rules("add mul maximum minimum", _binary, a=_operand(), b=_operand())
    | _rules("sub", _binary, a=_operand(NUMERIC), b=_operand(NUMERIC))
    | _rules("div", _binary, a=_operand(FLOATING), b=_operand(FLOATING))
    | _rules("floor_div remainder", _divided, a=_operand(NUMERIC), b=_operand(NUMERIC))
    | _rules("pow", _power, a=_operand(NUMERIC), b=_operand(NUMERIC))
    | _rules("bitwise_and bitwise_or", _binary, a=_operand(INTEGRAL), b=_operand(INTEGRAL))
    | _rules("eq ne lt le gt ge", _compared, a=_operand(), b=_operand())
    | _rules("where", _where, condition=CONDITION, a=_array(), b=_array())
    | _rules("abs copy", _same, x=_array())
    | _rules("neg sign relu", _same, x=_array(NUMERIC))
    | _rules("sqrt exp log sigmoid tanh", _same, x=_array(FLOATING))
    | _rules("bitwise_not", _same, x=_array(INTEGRAL))
    | _rules("gelu", _gelu, x=_array(FLOATING), approximate=APPROXIMATE)
    | _rules("cast", _cast, x=_array(), dtype=DTYPE)
    # reductions
    | _rules("sum", _sum, x=_array(), **_REDUCED)
    | _rules("sum_to", _sum_to, x=_array(FLOATING), shape=SHAPE)
    | _rules("mean", _mean, x=_array(FLOATING), **_REDUCED, correction=INT)
    | _rules("amax amin", _extreme, x=_array(), **_REDUCED)
    | _rules("argmax argmin", _place, x=_array(), axis=_optional(INT), keepdims=FLAG)
    | _rules("any all", _truth, x=_array(), **_REDUCED)
    | _rules("softmax log_softmax", _softmax, x=_array(FLOATING), axis=INT)
    # movement
    | _rules("reshape", _reshape, x=_array(), shape=SHAPE)
    | _rules("permute", _permute, x=_array(), axes=AXES)
    | _rules("expand", _expand, x=_array(), shape=SHAPE)
    | _rules("getitem", _getitem, x=_array(), index=INDEX)
    | _rules("cat", _cat, arrays=ARRAYS, axis=INT)
    | _rules("index_select", _index_select, x=_array(), index=POSITIONS, axis=INT)
    | _rules("gather", _gather, x=_array(), index=POSITIONS, axis=INT)
    # linear algebra and normalization
    | _rules("matmul", _matmul, a=_array(NUMERIC), b=_array(NUMERIC))
    | _rules(
        "linear", _linear,
        x=_array(FLOATING, 2), w=_array(FLOATING, 2), b=_optional(_array(FLOATING, 1)),
        activation=ACTIVATION,
    )
    | _rules(
        "linear_int8", _linear_int8,
        x=_array(FLOATING, 2), w8=_array(NUMERIC, 2), scale=_array(FLOATING, 1),
        b=_optional(_array(FLOATING, 1)), activation=ACTIVATION,
    )
    | _rules(
        "layer_norm", _layer_norm,
        x=_array(FLOATING, 2), weight=_optional(_array(FLOATING, 1)),
        bias=_optional(_array(FLOATING, 1)), eps=NUMBER,
    )
)  # fmt: skip

_GRADIENT = (
    _rules("relu_backward", _relu_backward, g=_array(FLOATING), y=_array(FLOATING))
    | _rules(
        "gelu_backward", _gelu_backward,
        g=_array(FLOATING), x=_array(FLOATING), approximate=APPROXIMATE,
    )
    | _rules("mean_backward", _mean_backward, g=_array(FLOATING), shape=SHAPE, correction=INT)
    | _rules("getitem_backward", _getitem_backward, g=_array(FLOATING), index=INDEX, shape=SHAPE)
    | _rules(  # a negative axis would select another one
        "index_select_backward", _index_select_backward,
        g=_array(FLOATING), index=POSITIONS, axis=COUNT, shape=SHAPE,
    )
    | _rules(
        "gather_backward", _gather_backward,
        g=_array(FLOATING), index=POSITIONS, axis=INT, shape=SHAPE,
    )
    | _rules(
        "linear_backward", _linear_backward,
        g=_array(FLOATING, 2), x=_array(FLOATING, 2), w=_array(FLOATING, 2),
        y=_optional(_array(FLOATING, 2)), activation=ACTIVATION, needs=NEEDS,
    )
    | _rules(
        "layer_norm_backward", _layer_norm_backward,
        g=_array(FLOATING, 2), x=_array(FLOATING, 2), mean=_array(FLOATING, 1),
        rstd=_array(FLOATING, 1), weight=_optional(_array(FLOATING, 1)), needs=NEEDS,
    )
)  # fmt: skip

_RULES = _FORWARD | _GRADIENT

FORWARD = frozenset(_FORWARD)  # what a recorded forward can hold
GRADIENT = frozenset(_GRADIENT)  # what a program for gradients can hold besides
KERNELS = FORWARD | GRADIENT


# --- a node, and a graph ---------------------------------------------------------------------


def infer(kernel: str, args: dict[str, Any]) -> Results:
    """The metas of a kernel's results; None for one that ``needs`` leaves out.

    ``args`` has every argument of the reference but ``out``, defaults included: a Meta for each
    array, plain values for the rest, ints for what depends on the batch. Raises ProgramError,
    which names the kernel and the argument, for anything that the kernel is not sure to take.
    """
    rule = _rule(kernel)
    if type(args) is not dict or set(args) != set(rule.kinds):
        given = tuple(args) if type(args) is dict else args
        raise _wrong(kernel, f"the arguments {', '.join(rule.kinds)}", given)
    try:
        for name, kind in rule.kinds.items():
            if not kind.fits(args[name]):
                raise _wrong(name, kind.name, args[name])
        return rule.results(**args)
    except ProgramError as error:
        raise ProgramError(f"{kernel}: {error}") from None


def _rule(kernel: str) -> _Rule:
    if type(kernel) is not str or kernel not in _RULES:
        raise ProgramError(
            f"kernel: expected one that a program may hold, got {_shown(kernel)}; the program is "
            "damaged, or needs a newer tinygrad_ish"
        )
    return _RULES[kernel]


def check(graph: Graph, batches: tuple[int, ...] = (1, 2, 3), limit: int = 2**30) -> None:
    """Follow the shapes and dtypes of a graph from node to node, for batches of these sizes.

    Raises ProgramError, which names the node and its line, where a kernel does not take its
    arguments, gives other results than those declared, or has the batch where a constant belongs;
    and for a value of more than ``limit`` bytes for each row of the batch, or four times as many in
    all those that are there at once. Constants, which the file holds, may be larger.
    """
    dying = graph.last_reads()
    viewed = {k for node in graph.nodes if node.kernel in VIEWS for k in node.reads()}
    kept = viewed | set(graph.constants)  # a view keeps what it shows
    for batch in batches:
        held = 0
        metas = [Meta(value.at(batch), value.dtype) for value in graph.values]
        for k in (*graph.inputs, *graph.constants):
            name = f"value {k} {_shown(graph.values[k].name)}"
            if not _is_meta(metas[k]):
                raise _wrong(
                    f"{name}, for a batch of {batch}",
                    f"up to {NDIM_LIMIT} lengths of 0 or more and {SIZE_LIMIT} bytes",
                    metas[k].shape,
                )
            if k not in graph.constants:
                _check_size(name, metas[k], batch, limit)
                held += _bytes(metas[k])
        for i, node in enumerate(graph.nodes):
            try:
                _check_node(graph, node, metas, batch, limit)
                held += sum(_bytes(metas[k]) for k in node.results if k is not None)
                if held > 4 * limit * batch:
                    raise ProgramError(f"{node.kernel}: {held} bytes would be held at once")
                held -= sum(_bytes(metas[k]) for k in dying[i] if k not in kept)
            except ProgramError as error:
                line = f" at {node.line[:200]}" if node.line else ""
                raise ProgramError(f"node {i}{line}, for a batch of {batch}: {error}") from None


def _check_size(what: str, meta: Meta, batch: int, limit: int) -> None:
    if _bytes(meta) > limit * batch:
        raise ProgramError(
            f"{what}: {meta} takes {_bytes(meta)} bytes; a program may take {limit} for each row "
            "of the batch"
        )


def _check_node(graph: Graph, node: Node, metas: list[Meta], batch: int, limit: int) -> None:
    kinds = _rule(node.kernel).kinds
    for name, argument in node.args.items():
        if _has_dim(argument) and not (name in kinds and kinds[name].dims):
            raise ProgramError(
                f"{node.kernel}: {printable(name)}: expected a constant, got the batch size"
            )
    args = {name: _with(metas, at_batch(a, batch)) for name, a in node.args.items()}
    results = infer(node.kernel, args)
    if len(results) != len(node.results):
        raise _wrong(f"{node.kernel}: the number of results", str(len(results)), len(node.results))
    for k, meta in zip(node.results, results):
        if meta is not None:
            _check_size(f"{node.kernel}: a result", meta, batch, limit)
        if k is not None and metas[k] != meta:
            raise ProgramError(
                f"{node.kernel}: value {k} is declared as {graph.values[k]}, but the kernel gives "
                f"{meta}"
            )


def _has_dim(argument: Any) -> bool:
    if isinstance(argument, slice):
        return _has_dim((argument.start, argument.stop, argument.step))
    if isinstance(argument, tuple) and not isinstance(argument, (Dim, Ref)):
        return any(map(_has_dim, argument))
    return isinstance(argument, Dim)


def _with(metas: list[Meta], argument: Any) -> Any:
    """An argument with metas for its values."""
    if isinstance(argument, Ref):
        return metas[argument.value]
    if type(argument) is tuple:
        return tuple(_with(metas, a) for a in argument)
    return argument
