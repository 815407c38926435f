"""Random numbers of a counter. Dropout draws its mask in the same pass that applies it, forward and
backward, and stores none."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ._arrays import compilable, deliver, destination
from ._jit import intrinsic, ir, task, types
from ._lanes import lanes_of, spread
from ._tasks import Call, free, integer, integers, number, run, scratch, vector

__all__ = ["dropout"]

CHUNK = 8192  # elements in one task
LANES = 8  # counters side by side
SPAN = 4 * LANES  # the words that they give, of 32 bits: one for each element
LOW = 0xFFFFFFFF  # the low word of 64 bits


@task
def _draw(args, i):
    state, ticket = integers(args, 0), integers(args, 2)
    ticket[0], ticket[1] = state[0], state[1]
    state[1] += 1
    return 0


def draw_calls(state: np.ndarray, out: np.ndarray) -> list[Call] | None:
    """``draw`` as a call."""
    if not _is_ticket(state) or not _is_ticket(out):
        return None
    return [Call(_draw, np.dtype(np.float32), 1, (state, 2, out, 2), writes=(state, out))]


def _is_ticket(x: np.ndarray) -> bool:
    return x.shape == (2,) and x.dtype == np.int64 and x.flags.c_contiguous and x.flags.aligned


def _philox(builder: Any, counter: list[Any], key: list[Any]) -> list[Any]:
    """``reference.philox`` of vectors of uint64; of the results the low words count."""
    type_ = counter[0].type

    def constant(value: int) -> Any:
        return ir.Constant(type_, [value] * type_.count)

    def low(x: Any) -> Any:
        return builder.and_(x, constant(LOW))

    def mixed(product: Any, *others: Any) -> Any:
        high = builder.lshr(product, constant(32))
        return builder.xor(builder.xor(high, others[0]), others[1])

    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        # The products' high words, where others mask them off, fall away in the next product.
        p = builder.mul(low(a), constant(0xD2511F53))
        q = builder.mul(low(c), constant(0xCD9E8D57))
        a, b, c, d = mixed(q, b, k0), q, mixed(p, d, k1), p
        k0 = builder.add(k0, constant(0x9E3779B9))
        k1 = builder.add(k1, constant(0xBB67AE85))
    return [a, b, c, d]


@intrinsic
def _drop(
    typingctx: Any, x: Any, out: Any, at: Any, block: Any, call: Any, key: Any, least: Any,
    scale: Any,
) -> Any:  # fmt: skip
    """out = x · scale, or 0 where the random word is below ``least``, for the SPAN elements from
    ``at`` on; the words are those of the counters (block, call), (block + 1, call), …"""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x_type, out_type = signature.args[:2]
        source, target = (
            context.make_array(t)(context, builder, v).data
            for t, v in zip((x_type, out_type), values, strict=False)
        )
        at, block, call, key, least, scale = values[2:]
        word = ir.IntType(64)
        half = ir.Constant(ir.VectorType(word, LANES), [32] * LANES)
        blocks = builder.add(
            spread(builder, block, LANES), ir.Constant(half.type, list(range(LANES)))
        )
        calls, keys = (spread(builder, v, LANES) for v in (call, key))
        counter = [blocks, builder.lshr(blocks, half), calls, builder.lshr(calls, half)]
        a, b, c, d = _philox(builder, counter, [keys, builder.lshr(keys, half)])
        low = ir.Constant(half.type, [LOW] * LANES)
        pairs = [
            builder.or_(builder.and_(one, low), builder.shl(other, half))
            for one, other in ((a, b), (c, d))
        ]
        # Lane n of both pairs holds the words of elements 4n … 4n + 3, the lowest bits first.
        order = [lane for n in range(LANES) for lane in (n, LANES + n)]
        words = builder.shuffle_vector(*pairs, lanes_of(order))
        words = builder.bitcast(words, ir.VectorType(ir.IntType(32), SPAN))
        kept = builder.icmp_unsigned(">=", words, spread(builder, least, SPAN))
        elements = ir.VectorType(scale.type, SPAN)

        def place(data: Any) -> Any:
            return builder.bitcast(builder.gep(data, [at]), elements.as_pointer())

        align = x_type.dtype.bitwidth // 8
        scaled = builder.fmul(
            builder.load(place(source), align=align), spread(builder, scale, SPAN)
        )
        zero = ir.Constant(elements, [0.0] * SPAN)
        builder.store(builder.select(kept, scaled, zero), place(target), align=align)
        return context.get_dummy_value()

    u64 = types.uint64
    return types.void(x, out, types.int64, u64, u64, u64, types.uint32, x.dtype), generate


@task
def _dropout_chunk(args, i):
    x, ticket, out = vector(args, 0), integers(args, 2), vector(args, 4)
    least, scale = integer(args, 6), x.dtype.type(number(args, 7))
    key, call = np.uint64(ticket[0]), np.uint64(ticket[1])
    start, stop = i * CHUNK, min((i + 1) * CHUNK, len(x))
    if least > LOW:
        for n in range(start, stop):
            out[n] = 0
        return 0
    whole = stop - (stop - start) % SPAN
    for at in range(start, whole, SPAN):
        _drop(x, out, at, np.uint64(at // 4), call, key, np.uint32(least), scale)
    if whole < stop:
        rest = scratch(x.dtype, SPAN)
        rest[:] = 0
        for n in range(whole, stop):
            rest[n - whole] = x[n]
        _drop(rest, rest, 0, np.uint64(whole // 4), call, key, np.uint32(least), scale)
        for n in range(whole, stop):
            out[n] = rest[n - whole]
        free(rest)
    return 0


def dropout(
    x: np.ndarray, ticket: np.ndarray, p: float, out: np.ndarray | None = None
) -> np.ndarray:
    """x · 1/(1-p), or 0 with probability p, by the reference's random numbers: element i takes word
    i mod 4 of Philox with the counter (⌊i/4⌋, calls) and the key seed.

    ticket: int64 [seed, calls], from ``draw``.
    """
    if not compilable(x):
        return reference.dropout(x, ticket, p, out)
    y = destination(out, x.shape, x.dtype, x, elementwise=True)
    calls = dropout_calls(np.ascontiguousarray(x), np.ascontiguousarray(ticket), p, y)
    if calls is None:
        return reference.dropout(x, ticket, p, out)
    run(*calls)
    return deliver(y, out)


def dropout_calls(
    x: np.ndarray, ticket: np.ndarray, p: float, out: np.ndarray
) -> list[Call] | None:
    """``dropout`` as a call, or None if these arrays are not for compiled kernels."""
    direct = x.flags.c_contiguous and out.flags.c_contiguous and _is_ticket(ticket)
    if not direct or not compilable(x, out):
        return None
    n, scale = x.size, 1 / (1 - p) if p < 1 else 0.0
    return [Call(
        _dropout_chunk,
        x.dtype,
        -(-n // CHUNK),
        (x, n, ticket, 2, out, n, round(p * 2**32), scale),
        writes=(out,),
        nanoseconds=0.6 * n,
    )]  # fmt: skip
