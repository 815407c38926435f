"""The matrix product C = A B behind ``linear`` and its gradients.

Every element of C is summed over k in order, each term added by one fma, whatever tile, thread or
batch it falls in: a row's result never depends on its neighbours, bit for bit.

                 B  k ↓ j →                        The tile: ROWS × 2 vectors of C, which stay in
                   ┌────┬────┬────┬──┐             registers while k runs over DEPTH terms. Each k
                   │    │▒▒▒▒│    │  │             loads two vectors of a row of B and ROWS single
             DEPTH │    │▒▒▒▒│    │  │             elements of A, and takes 2·ROWS fma:
                   ├────┼────┼────┼──┤
                   │    │    │    │  │               for k: for r: for v:
                   └────┴────┴────┴──┘                   c[r, v] = fma(a[r, k], b[k, v], c[r, v])
     A  i ↓ k →    C  panels of PANEL columns
      ┌─────┬───┐  ┌────┬────┬────┬──┐             The loops, outermost first:
      │     │   │  │    │    │    │  │               blocks of C, BLOCK rows × one panel (threads)
      │░░░░░│   │  │    │▓▓▓▓│    │  │                 k, DEPTH terms at a time
      ├─────┼───┤  ├────┼────┼────┼──┤ ↑                 tiles down the block: ░ × ▒ → ▓
      │     │   │  │    │    │    │  │ BLOCK               k, one term at a time
      └─────┴───┘  └────┴────┴────┴──┘ ↓

The slice ▒ of B stays in the L1 cache for all tiles of a block. Between slices the sums rest in C,
so cutting k into slices changes no order; after the last come bias and ReLU.

A is read where it lies, with any strides: A and its transpose are one case. B is read where it
lies if its rows are contiguous. Of a transposed B each block packs its slice first, transposing
squares of vectors in registers:

     w = Bᵀ  j ↓ k →                         packed  k ↓ j →
       ┌──────────┬───┐  a row of lanes         ┌───┐  rows of PANEL columns,
    j0 │▒▒▒▒▒▒▒▒▒▒│   │  from each of as        │▒▒▒│  one after another
       │▒▒▒▒▒▒▒▒▒▒│   │  many rows of w  →      │▒▒▒│
       └──────────┴───┘                         └───┘

At the edges nothing is read past an array. What is left of the rows takes a tile, half a tile or
a single row; missing rows of a tile repeat the last one, and nobody reads their sums. The last
panel, if it is not whole, is packed in either layout. Tiles that reach past C are summed in a
scratch array.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ._intrinsics import FEATURES, IS_X86, TRIPLE, multiply_add
from ._jit import device, task
from ._tasks import Call, integer, matrix, rows, vector
from .elementwise import clamp, shut

__all__: list[str] = []


def _choose_tile() -> tuple[int, int]:
    """Bytes in a vector and rows in a tile, by the size and number of the CPU's registers.

    Any CPU takes any of them (LLVM splits vectors and spills registers): the rest is speed.
    """
    if IS_X86 and "+avx512f" in FEATURES:
        return 64, 8
    if IS_X86 and {"+avx2", "+fma"} <= FEATURES:
        return 32, 6
    return 16, 8 if TRIPLE.startswith(("aarch64", "arm64")) else 4


VECTOR_BYTES, ROWS = _choose_tile()
VECTORS = 2  # in a row of a tile; a panel is as wide
HALF = ROWS // 2  # of a tile, for what is left of the rows
BLOCK = 16 * ROWS
DEPTH = 256  # with AVX-512 the slice of B takes 32 KiB
INT = types.intp
FLOPS_PER_NANOSECOND = 50


class _Emitter:
    """Emits the instructions that the intrinsics below share, for elements of one type."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_data_type(dtype)
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.vector = ir.VectorType(self.element, self.lanes)

    def array(self, type_: Any, value: Any) -> Any:
        return self.context.make_array(type_)(self.context, self.builder, value)

    def sum(self, *terms: Any) -> Any:
        return functools.reduce(self.builder.add, terms)

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, ir.Constant(value.type, factor))

    def bytes_of(self, elements: Any) -> Any:
        return self.times(elements, self.itemsize)

    def rows_of(self, array: Any, first: Any, count: int) -> list[Any]:
        """How many bytes into the array each row starts; rows past its end are its last."""
        down = cgutils.unpack_tuple(self.builder, array.strides)[0]
        height = cgutils.unpack_tuple(self.builder, array.shape)[0]
        last = self.builder.sub(height, ir.Constant(first.type, 1))
        offsets = []
        for n in range(count):
            row = self.builder.add(first, ir.Constant(first.type, n))
            inside = self.builder.icmp_signed("<", row, last)
            offsets.append(self.builder.mul(self.builder.select(inside, row, last), down))
        return offsets

    def at(self, data: Any, offset: Any, type_: Any) -> Any:
        """A pointer to ``offset`` bytes after ``data``."""
        return cgutils.pointer_add(self.builder, data, offset, type_.as_pointer())

    def load(self, data: Any, offset: Any) -> Any:
        return self.builder.load(self.at(data, offset, self.vector), align=self.itemsize)

    def store(self, value: Any, data: Any, offset: Any) -> None:
        self.builder.store(value, self.at(data, offset, self.vector), align=self.itemsize)

    def broadcast(self, data: Any, offset: Any) -> Any:
        """A vector with every lane equal to the element there."""
        element = self.builder.load(self.at(data, offset, self.element))
        lane = ir.Constant(ir.IntType(32), 0)
        vector = self.builder.insert_element(self.vector(ir.Undefined), element, lane)
        return self.shuffle(vector, vector, [0] * self.lanes)

    def shuffle(self, one: Any, two: Any, lanes: list[int]) -> Any:
        """The given lanes of the two vectors side by side."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes)
        return self.builder.shuffle_vector(one, two, mask)


def _emit_loop(
    emit: _Emitter, count: Any, sums: list[Any], a: list[Any], along: Any, b: list[Any], step: Any
) -> list[Any]:
    """The tile's sums after ``count`` more terms.

    a holds a pointer to the first element of each row, the next one ``along`` bytes on; b one to
    the first of each vector, the next one ``step`` bytes on.
    """
    builder, zero = emit.builder, ir.Constant(count.type, 0)
    before = builder.block
    loop, after = (builder.append_basic_block(f"tile.{name}") for name in ("loop", "after"))
    builder.cbranch(builder.icmp_signed(">", count, zero), loop, after)

    builder.position_at_end(loop)
    left, a_at, b_at = (builder.phi(count.type) for _ in range(3))
    olds = [builder.phi(emit.vector) for _ in sums]
    row_of_b = [emit.load(pointer, b_at) for pointer in b]
    news = []
    for r, pointer in enumerate(a):
        factor = emit.broadcast(pointer, a_at)
        for v, elements in enumerate(row_of_b):
            news.append(multiply_add(builder, factor, elements, olds[r * len(b) + v]))
    left_now = builder.sub(left, ir.Constant(count.type, 1))
    following = [left_now, emit.sum(a_at, along), emit.sum(b_at, step), *news]
    builder.cbranch(builder.icmp_signed(">", left_now, zero), loop, after)

    builder.position_at_end(after)
    results = [builder.phi(emit.vector) for _ in sums]
    starts = [count, zero, zero, *sums, *sums]
    phis = [left, a_at, b_at, *olds, *results]
    for phi, start, then in zip(phis, starts, following + news, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(then, loop)
    return results


def _tile_of(rows: int, vectors: int) -> Any:
    """The intrinsic that sums a tile of this size.

    tile(a, i, k0, k1, b, at, step, c, to, width):
    C += A[i : i + rows, k0:k1] @ B, from zero where k0 is 0. Row k of B starts at
    b[at + (k - k0) * step], row r of C at c[to + r * width]. Rows past the end of a repeat its
    last row.
    """

    @intrinsic
    def tile(typingctx, a, i, k0, k1, b, at, step, c, to, width):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, c.dtype)
            a_value, i, k0, k1, b_value, at, step, c_value, to, width = args
            a_array, b_data = emit.array(a, a_value), emit.array(b, b_value).data
            c_data = emit.array(c, c_value).data
            along = cgutils.unpack_tuple(builder, a_array.strides)[1]
            start = builder.mul(k0, along)
            a_rows = [
                emit.at(a_array.data, emit.sum(row, start), emit.element)
                for row in emit.rows_of(a_array, i, rows)
            ]
            b_row = [
                emit.at(b_data, emit.bytes_of(emit.sum(at, at.type(v * emit.lanes))), emit.vector)
                for v in range(vectors)
            ]
            places = [
                emit.bytes_of(emit.sum(to, emit.times(width, r), to.type(v * emit.lanes)))
                for r in range(rows)
                for v in range(vectors)
            ]
            fresh, zero = builder.icmp_signed("==", k0, k0.type(0)), emit.vector(None)
            sums = [builder.select(fresh, zero, emit.load(c_data, place)) for place in places]
            count = builder.sub(k1, k0)
            sums = _emit_loop(emit, count, sums, a_rows, along, b_row, emit.bytes_of(step))
            for value, place in zip(sums, places, strict=True):
                emit.store(value, c_data, place)
            return context.get_dummy_value()

        return types.void(a, *[INT] * 3, b, *[INT] * 2, c, *[INT] * 2), generate

    return tile


@intrinsic
def _transpose_square(typingctx, w, j, k, out, at):
    """Columns of w from k on, in its rows from j on, to rows of a packed slice from out[at] on.

    As many rows and columns as a vector has lanes; rows past the end of w repeat its last row.
    The square is transposed by swapping its off-diagonal quarters, then theirs within each
    quarter, down to single elements.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = _Emitter(context, builder, out.dtype)
        w_array, out_data = emit.array(w, args[0]), emit.array(out, args[3]).data
        j, k, at = args[1], args[2], args[4]
        lanes, start = range(emit.lanes), emit.bytes_of(k)
        square = [
            emit.load(w_array.data, emit.sum(row, start))
            for row in emit.rows_of(w_array, j, emit.lanes)
        ]
        half = emit.lanes // 2
        while half:
            upper = [n - half + emit.lanes if n & half else n for n in lanes]
            lower = [n + emit.lanes if n & half else n + half for n in lanes]
            for r in (r for r in lanes if not r & half):
                one, two = square[r], square[r + half]
                square[r] = emit.shuffle(one, two, upper)
                square[r + half] = emit.shuffle(one, two, lower)
            half //= 2
        for r in lanes:
            place = emit.sum(at, at.type(r * VECTORS * emit.lanes))
            emit.store(square[r], out_data, emit.bytes_of(place))
        return context.get_dummy_value()

    return types.void(w, INT, INT, out, INT), generate


_tile = _tile_of(ROWS, VECTORS)
_tile_narrow = _tile_of(ROWS, 1)
_half_tile = _tile_of(HALF, VECTORS)
_row = _tile_of(1, VECTORS)


@device
def _pack(b, transposed, k0, k1, j0, width, packed):
    """packed, in rows of PANEL = b[k0:k1, j0 : j0 + width]; of bᵀ if transposed."""
    lanes = VECTOR_BYTES // packed.itemsize
    panel = VECTORS * lanes
    if not transposed:
        for k in range(k0, k1):
            row, part = b[k, j0:], packed[(k - k0) * panel :]
            for j in range(width):
                part[j] = row[j]
        return
    for j in range(0, width, lanes):
        if k1 - k0 >= lanes:
            for start in range(k0, k1, lanes):
                k = min(start, k1 - lanes)
                _transpose_square(b, j0 + j, k, packed, (k - k0) * panel + j)
        else:
            for k in range(k0, k1):
                for r in range(j, min(j + lanes, width)):
                    packed[(k - k0) * panel + r] = b[j0 + r, k]


@device
def _finish(sums, first, row, bias, relu, gate, out, i0, n, j0, width):
    """out[i0 : i0 + n, j0 : j0 + width] = sums + bias, through ReLU if wanted; 0 where the gate,
    if there is one, is not positive."""
    for r in range(n):
        part, bias_part, result = sums[first + r * row :], bias[j0:], out[i0 + r, j0:]
        if gate.size:
            gate_part = gate[i0 + r, j0:]
            for j in range(width):
                result[j] = shut(part[j], gate_part[j])
        else:
            for j in range(width):
                v = part[j]
                if bias.size:
                    v += bias_part[j]
                result[j] = clamp(v) if relu else v


@device
def _block(a, b, transposed, bias, relu, gate, out, i0, j0):
    """out[i0 : i0 + BLOCK, j0 : j0 + PANEL] = a @ b there, then what ``_finish`` does."""
    lanes = VECTOR_BYTES // out.itemsize
    panel = VECTORS * lanes
    n, depth, width = min(BLOCK, out.shape[0] - i0), a.shape[1], min(panel, out.shape[1] - j0)
    in_place = width == panel and not transposed
    packed = np.zeros(0 if in_place else min(depth, DEPTH) * panel, out.dtype)
    source, step = (b.reshape(-1), b.shape[1]) if in_place else (packed, panel)
    left = n % ROWS
    inside = (
        width == panel and depth > 0 and (left <= 1 or left == HALF)
    )  # no tile passes out's end
    if inside:
        sums, first, row = out.reshape(-1), i0 * out.shape[1] + j0, out.shape[1]
    else:
        sums, first, row = np.zeros((n + ROWS) * panel, out.dtype), 0, panel
    for k0 in range(0, depth, DEPTH):
        k1 = min(k0 + DEPTH, depth)
        at = k0 * step + j0 if in_place else 0
        if not in_place:
            _pack(b, transposed, k0, k1, j0, width, packed)
        for r in range(0, n, ROWS):
            to = first + r * row
            if n - r == 1:
                _row(a, i0 + r, k0, k1, source, at, step, sums, to, row)
            elif n - r <= HALF:
                _half_tile(a, i0 + r, k0, k1, source, at, step, sums, to, row)
            elif width <= lanes:
                _tile_narrow(a, i0 + r, k0, k1, source, at, step, sums, to, row)
            else:
                _tile(a, i0 + r, k0, k1, source, at, step, sums, to, row)
    if bias.size or relu or gate.size or not inside:
        _finish(sums, first, row, bias, relu, gate, out, i0, n, j0, width)


@task
def _product(args, i):
    a, b, transposed = matrix(args, 0), rows(args, 5), integer(args, 8) != 0
    bias, relu, gate, out = vector(args, 9), integer(args, 11) != 0, rows(args, 12), rows(args, 15)
    panel = VECTORS * (VECTOR_BYTES // out.itemsize)
    down = (out.shape[0] + BLOCK - 1) // BLOCK
    _block(a, b, transposed, bias, relu, gate, out, i % down * BLOCK, i // down * panel)
    return 0


def takes(b: np.ndarray) -> bool:
    """Whether a product takes b, or bᵀ, where it lies."""
    return b.flags.c_contiguous or b.T.flags.c_contiguous


def product(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    gate: np.ndarray | None = None,
) -> Call:
    """out (M, N) = a (M, K) @ b (K, N), as a call.

    Then bias and activation; or 0 where ``gate`` (M, N), the output of a ReLU, is not positive. b
    is contiguous in either order, the others in rows; a has any strides.
    """
    transposed = not b.flags.c_contiguous
    panel = VECTORS * (VECTOR_BYTES // out.itemsize)
    m, n = out.shape
    none = (out, 0)
    return Call(
        _product,
        out.dtype,
        -(-m // BLOCK) * -(-n // panel),
        (
            a, *a.shape, *a.strides,
            b, *(b.shape[::-1] if transposed else b.shape), transposed,
            *(none if bias is None else (bias, n)), activation == "relu",
            *((*none, 0) if gate is None else (gate, m, n)),
            out, m, n,
        ),
        writes=(out,),
        nanoseconds=2 * a.size * n / FLOPS_PER_NANOSECOND,
    )  # fmt: skip
