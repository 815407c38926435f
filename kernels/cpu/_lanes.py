"""Sums over contiguous rows, in an order that the length of the rows alone decides.

Lane k combines the terms of the elements k, k + lanes, k + 2 · lanes, …; then the lanes are folded
in halves. The lanes are as many as fill a few vectors, so that an addition need not wait for the
one before; where rows may be short, fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._jit import cgutils, intrinsic, ir, types

__all__ = ["folds", "lanes_of", "magnitude", "spread", "sums", "updates"]

BYTES = 256  # of one sum's lanes
STEP = 64  # bytes of a row that ``updates`` takes at a time

Term = Callable[[Any, list[Any], list[Any]], Any]
Combine = Callable[[Any, Any, Any], Any]
Update = Callable[[Any, list[Any], list[Any], Any], Any]


def sums(*terms: Term, widen: bool = False, lanes: int | None = None) -> Any:
    """An intrinsic f(rows, numbers) that gives the sum of each term: ``folds`` by addition."""
    return folds(_plus, 0.0, *terms, widen=widen, lanes=lanes)


def folds(
    combine: Combine,
    neutral: float,
    *terms: Term,
    widen: bool = False,
    lanes: int | None = None,
) -> Any:
    """An intrinsic f(rows, numbers) that combines each term over all places of the rows; it is
    ``neutral`` where there are none.

    rows: a tuple of arrays (D,), C-contiguous; numbers: a tuple of floats of their dtype. A term is
    emitted by term(builder, elements, numbers), from and to vectors, of which combine(builder, a,
    b) makes one. The results, and with them the elements, are float64 if ``widen``. ``lanes``
    is a power of 2, by default as many as fill BYTES.
    """

    @intrinsic
    def total(typingctx: Any, rows: Any, numbers: Any) -> Any:
        dtype = rows.types[0].dtype
        result = types.float64 if widen else dtype
        several = types.UniTuple(result, len(terms)) if len(terms) > 1 else result

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            narrow, wide = (context.get_data_type(t) for t in (dtype, result))
            count = lanes or BYTES * 8 // result.bitwidth
            arrays = [
                context.make_array(t)(context, builder, v)
                for t, v in zip(rows.types, cgutils.unpack_tuple(builder, values[0]), strict=True)
            ]
            given = [spread(builder, v, count) for v in cgutils.unpack_tuple(builder, values[1])]
            (size,) = cgutils.unpack_tuple(builder, arrays[0].shape)
            vector = ir.VectorType(narrow, count)
            start = ir.Constant(ir.VectorType(wide, count), [neutral] * count)
            totals = [cgutils.alloca_once_value(builder, start) for _ in terms]

            def take(load: Callable[[Any], Any], only: Any = None) -> None:
                elements = [load(a.data) for a in arrays]
                if widen and narrow != wide:
                    elements = [builder.fpext(e, start.type) for e in elements]
                for term, into in zip(terms, totals, strict=True):
                    value = term(builder, elements, given)
                    value = value if only is None else builder.select(only, value, start)
                    builder.store(combine(builder, builder.load(into), value), into)

            def place(data: Any, at: Any) -> Any:
                return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

            align = dtype.bitwidth // 8
            whole = builder.and_(size, size.type(-count))
            with cgutils.for_range_slice(builder, size.type(0), whole, size.type(count)) as (at, _):
                take(lambda data: builder.load(place(data, at), align=align))
            left = builder.sub(size, whole)
            with builder.if_then(builder.icmp_signed(">", left, left.type(0))):
                inside = _first(builder, left, count)
                take(lambda data: _load_some(builder, place(data, whole), inside, align), inside)
            results = [_fold(builder, combine, builder.load(t)) for t in totals]
            if len(results) == 1:
                return results[0]
            return context.make_tuple(builder, several, results)

        return several(rows, numbers), generate

    return total


def updates(*terms: Update) -> Any:
    """An intrinsic f(targets, rows, numbers) that writes each term to a target of its own, in one
    pass over all of them.

    targets, rows: tuples of arrays (D,), C-contiguous; a target may be a row, but overlaps no other
    one, nor a target; numbers: a tuple of floats of their dtype. A term is emitted by term(builder,
    elements of the rows, numbers, what the target holds), from and to vectors.
    """

    @intrinsic
    def update(typingctx: Any, targets: Any, rows: Any, numbers: Any) -> Any:
        dtype = rows.types[0].dtype

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lanes, align = STEP * 8 // dtype.bitwidth, dtype.bitwidth // 8
            into, sources = (
                [
                    context.make_array(t)(context, builder, v)
                    for t, v in zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
                ]
                for kind, value in zip((targets, rows), values[:2], strict=True)
            )
            given = [spread(builder, v, lanes) for v in cgutils.unpack_tuple(builder, values[2])]
            (size,) = cgutils.unpack_tuple(builder, sources[0].shape)
            vector = ir.VectorType(context.get_data_type(dtype), lanes)

            def step(at: Any, inside: Any = None) -> None:
                def place(array: Any) -> Any:
                    return builder.bitcast(builder.gep(array.data, [at]), vector.as_pointer())

                def load(array: Any) -> Any:
                    if inside is None:
                        return builder.load(place(array), align=align)
                    return _load_some(builder, place(array), inside, align)

                elements = [load(a) for a in sources]
                results = [
                    term(builder, elements, given, load(a))
                    for term, a in zip(terms, into, strict=True)
                ]
                for result, a in zip(results, into, strict=True):
                    if inside is None:
                        builder.store(result, place(a), align=align)
                    else:
                        _store_some(builder, result, place(a), inside, align)

            whole = builder.and_(size, size.type(-lanes))
            with cgutils.for_range_slice(builder, size.type(0), whole, size.type(lanes)) as (at, _):
                step(at)
            left = builder.sub(size, whole)
            with builder.if_then(builder.icmp_signed(">", left, left.type(0))):
                step(whole, _first(builder, left, lanes))
            return context.get_dummy_value()

        return types.void(targets, rows, numbers), generate

    return update


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """The vector of this value in all lanes."""
    empty = ir.VectorType(value.type, lanes)(ir.Undefined)
    first = builder.insert_element(empty, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, empty, lanes_of([0] * lanes))


def _load_some(builder: Any, place: Any, inside: Any, align: int) -> Any:
    """The lanes of the vector there that are ``inside``, in the others 0: these are not read."""
    vector = place.type.pointee
    arguments = [place, ir.IntType(32)(align), inside, vector(None)]
    name = f"llvm.masked.load.v{vector.count}{vector.element.intrinsic_name}.p0"
    function_type = ir.FunctionType(vector, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def _store_some(builder: Any, value: Any, place: Any, inside: Any, align: int) -> None:
    """Write the lanes that are ``inside``."""
    arguments = [value, place, ir.IntType(32)(align), inside]
    name = f"llvm.masked.store.v{value.type.count}{value.type.element.intrinsic_name}.p0"
    function_type = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    builder.call(function, arguments)


def _first(builder: Any, count: Any, lanes: int) -> Any:
    """Which of the lanes are the first ``count``."""
    numbers = ir.Constant(ir.VectorType(count.type, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, spread(builder, count, lanes))


def _plus(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _fold(builder: Any, combine: Combine, vector: Any) -> Any:
    half = vector.type.count // 2
    while half:
        halves = [lanes_of(list(range(first, first + half))) for first in (0, half)]
        vector = combine(builder, *[builder.shuffle_vector(vector, vector, h) for h in halves])
        half //= 2
    return builder.extract_element(vector, ir.IntType(32)(0))


def lanes_of(numbers: list[int]) -> Any:
    """Which lanes a shuffle takes."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def magnitude(builder: Any, vector: Any) -> Any:
    """\\|x\\| of each lane."""
    name = f"llvm.fabs.v{vector.type.count}{vector.type.element.intrinsic_name}"
    function_type = ir.FunctionType(vector.type, [vector.type])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [vector])
