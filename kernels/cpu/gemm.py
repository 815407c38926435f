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
      │     │   │  │    │    │    │  │               blocks of C, BLOCK rows × panels (tasks)
      │░░░░░│   │  │    │▓▓▓▓│    │  │                 k, DEPTH terms at a time
      ├─────┼───┤  ├────┼────┼────┼──┤ ↑                 panels across the block
      │     │   │  │    │    │    │  │ BLOCK               tiles down the panel: ░ × ▒ → ▓
      └─────┴───┘  └────┴────┴────┴──┘ ↓                     k, one term at a time

A block is one panel wide where C is small and up to GROUP panels where it is large: that follows
from the shape of C alone. The slice ▒ of B stays in the cache for all tiles of a panel. Between
slices the sums rest in C, so cutting k into slices changes no order; after the last come bias and
ReLU.

A is read where it lies, with any strides: A and its transpose are one case. A wide block first
copies its rows of a slice of A, in the order they have, together: rows that lie a power of two
apart compete for the same places in the cache. For the same reason a block of many rows copies
the slice ▒ of B. With few rows B is read where it lies if its rows are contiguous. Of a transposed
B each block packs its slices, transposing in registers:

     w = Bᵀ  j ↓ k →                         packed  k ↓ j →
       ┌──────────┬───┐  a cache line           ┌───┐  rows of a panel's columns,
    j0 │▒▒▒▒▒▒▒▒▒▒│   │  from each of as        │▒▒▒│  one after another
       │▒▒▒▒▒▒▒▒▒▒│   │  many rows of w as a    │▒▒▒│
       └──────────┴───┘  short vector's lanes → └───┘

A single row of A needs each element of B once, and reads it where it lies: rows WIDE vectors at a
time, or columns, transposed in registers and never stored.

At the edges nothing is read past an array. What is left of the rows takes a tile, half a tile or
single rows; missing rows of a tile repeat the last one, and nobody reads their sums. The last
panel, if it is not whole, is packed in either layout. A block with tiles that reach past C is
summed in a scratch array, and so is a wide block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._intrinsics import FEATURES, IS_X86, TRIPLE, multiply_add
from ._jit import cgutils, device, intrinsic, ir, task, types
from ._tasks import Call, array_at, flat, free, integer, matrix, rows, scratch, vector
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
FEW = 4  # blocks: of fewer, lower ones are made, so that several threads have work
GROUP = 8  # panels in a block of C, at most
COPIED = 4  # panels in a block from which on its rows of A are copied
PACKED = 64  # rows in a block from which on any panel of B is packed
SINGLE = 2  # rows that are summed one by one rather than in half a tile
PANEL_BYTES = VECTORS * VECTOR_BYTES
ALIAS = 1024  # rows so many bytes apart, or a multiple, compete for the same places in the cache
LINE = 64  # bytes in a cache line
SHORT_BYTES = min(VECTOR_BYTES, 32)  # in a vector where shuffles count
WIDE = 8  # vectors of a single row
FLOPS_PER_NANOSECOND = 100


class _Emitter:
    """Emits the instructions that the intrinsics below share, for elements of one type.

    Offsets and distances are in bytes.
    """

    def __init__(
        self, context: Any, builder: Any, pointer: Any, vector_bytes: int = VECTOR_BYTES
    ) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_data_type(pointer.dtype)
        self.itemsize = pointer.dtype.bitwidth // 8
        self.lanes = vector_bytes // self.itemsize
        self.vector = ir.VectorType(self.element, self.lanes)

    def rows(self, down: Any, left: Any, count: int) -> list[Any]:
        """Where each row starts, ``down`` after the one before; rows past the end are the last."""
        builder, last = self.builder, self.builder.sub(left, left.type(1))
        rows = [left.type(0)]
        for n in range(1, count):
            inside = builder.icmp_signed("<=", left.type(n), last)
            rows.append(builder.mul(builder.select(inside, left.type(n), last), down))
        return rows

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
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(one, two, mask)

    def columns(self, rows: list[Any], offset: Any) -> list[Any]:
        """A cache line from each of as many rows as a short vector has lanes, as its columns.

        A chunk of 16 bytes is loaded from each row, such that the squares to transpose lie one
        in each 16 bytes of a vector: the only shuffles that cost little everywhere.
        """
        builder, chunk = self.builder, 16 // self.itemsize
        part = ir.VectorType(self.element, chunk)
        columns = []
        for at in range(0, LINE, 16):
            place = builder.add(offset, offset.type(at))
            loads = [builder.load(self.at(row, place, part), align=self.itemsize) for row in rows]
            square = []
            for r in range(chunk):
                parts = loads[r::chunk]
                while len(parts) > 1:
                    size = list(range(2 * parts[0].type.count))
                    pairs = zip(parts[::2], parts[1::2], strict=True)
                    parts = [self.shuffle(one, two, size) for one, two in pairs]
                square += parts
            half = chunk // 2
            while half:
                square = self.swap(square, half, chunk)
                half //= 2
            columns += square
        return columns

    def swap(self, square: list[Any], half: int, chunk: int) -> list[Any]:
        """One step of transposing the squares."""
        square, lanes = list(square), square[0].type.count
        upper = [n - half + lanes if n & half else n for n in range(lanes)]
        lower = [n + lanes if n & half else n + half for n in range(lanes)]
        for r in (r for r in range(chunk) if not r & half):
            one, two = square[r], square[r + half]
            square[r] = self.shuffle(one, two, upper)
            square[r + half] = self.shuffle(one, two, lower)
        return square

    def loop(self, count: Any, step: int, starts: list[Any], body: Any) -> list[Any]:
        """values = body(values) while count > 0, count -= step; the values then."""
        builder, before = self.builder, self.builder.block
        loop, after = (builder.append_basic_block(f"tile.{name}") for name in ("loop", "after"))
        builder.cbranch(builder.icmp_signed(">", count, count.type(0)), loop, after)
        builder.position_at_end(loop)
        left, *olds = (builder.phi(start.type) for start in [count, *starts])
        news = body(olds)
        left_now = builder.sub(left, count.type(step))
        more = builder.icmp_signed(">", left_now, count.type(0))
        builder.cbranch(more, loop, after).set_metadata("llvm.loop", self.not_unrolled())
        end = builder.block
        builder.position_at_end(after)
        results = [builder.phi(start.type) for start in starts]
        phis = [left, *olds, *results]
        firsts, thens = [count, *starts, *starts], [left_now, *news, *news]
        for phi, first, then in zip(phis, firsts, thens, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, end)
        return results

    def not_unrolled(self) -> Any:
        """What keeps LLVM from unrolling a loop: a tile's terms fill the registers as they are.

        The first operand of such a node is the node itself (LLVM's language reference, llvm.loop).
        """
        module = self.builder.module
        disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        node = module.add_metadata([disable])
        node.operands = (node, disable)
        return node

    def sums(self, fresh: Any, c: Any, places: list[Any]) -> list[Any]:
        """Zeros where ``fresh``, else the vectors at the places in c."""
        builder, before = self.builder, self.builder.block
        load, after = (builder.append_basic_block(f"sums.{name}") for name in ("load", "after"))
        builder.cbranch(fresh, after, load)
        builder.position_at_end(load)
        loaded = [self.load(c, place) for place in places]
        builder.branch(after)
        builder.position_at_end(after)
        sums = [builder.phi(self.vector) for _ in places]
        for phi, before_value in zip(sums, loaded, strict=True):
            phi.add_incoming(self.vector(None), before)
            phi.add_incoming(before_value, load)
        return sums


@intrinsic
def _at(typingctx, array, offset):
    """A pointer to ``offset`` bytes after the first element of the array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return cgutils.pointer_add(builder, data, args[1])

    return types.CPointer(array.dtype)(array, types.intp), generate


def _tile_of(rows: int, vectors: int) -> Any:
    """The intrinsic that sums a tile of this size.

    tile(a, down, along, left, count, b, step, c, width, fresh):
    C = A @ B + C, or A @ B if ``fresh``, with ``count`` terms. The pointers are to the first
    elements; in A a row is ``down`` bytes after the one before and an element ``along``, in B a
    row is ``step`` bytes after the one before and in C ``width``. Where A has fewer than ``rows``
    rows ``left``, the last is repeated.
    """

    @intrinsic
    def tile(typingctx, a, down, along, left, count, b, step, c, width, fresh):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, down, along, left, count, b, step, c, width, fresh = args
            emit = _Emitter(context, builder, signature.args[0])
            rows_of_a = [emit.at(a, row, emit.element) for row in emit.rows(down, left, rows)]
            offsets = [width.type(v * VECTOR_BYTES) for v in range(vectors)]
            rows_of_c = [builder.mul(width, width.type(r)) for r in range(rows)]
            places = [builder.add(row, offset) for row in rows_of_c for offset in offsets]

            def term(values: list[Any]) -> list[Any]:
                a_at, b_at, *sums = values
                row = emit.at(b, b_at, emit.element)
                row_of_b = [emit.load(row, offset) for offset in offsets]
                for r, pointer in enumerate(rows_of_a):
                    factor = emit.broadcast(pointer, a_at)
                    for n, elements in enumerate(row_of_b, r * vectors):
                        sums[n] = multiply_add(builder, factor, elements, sums[n])
                return [builder.add(a_at, along), builder.add(b_at, step), *sums]

            zero = count.type(0)
            starts = [zero, zero, *emit.sums(fresh, c, places)]
            _, _, *sums = emit.loop(count, 1, starts, term)
            for value, place in zip(sums, places, strict=True):
                emit.store(value, c, place)
            return context.get_dummy_value()

        size = types.intp
        return types.void(a, size, size, size, size, b, size, c, size, types.boolean), generate

    return tile


@intrinsic
def _transpose(typingctx, w, down, left, out, step):
    """out = wᵀ: a cache line from each of as many rows as a short vector has lanes.

    A row of w is ``down`` bytes after the one before, a row of out ``step``. Where w has fewer
    rows ``left``, the last is repeated.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w, down, left, out, step = args
        emit = _Emitter(context, builder, signature.args[0], SHORT_BYTES)
        rows = [emit.at(w, row, emit.element) for row in emit.rows(down, left, emit.lanes)]
        for r, row in enumerate(emit.columns(rows, step.type(0))):
            emit.store(row, out, builder.mul(step, step.type(r)))
        return context.get_dummy_value()

    return types.void(w, types.intp, types.intp, out, types.intp), generate


@intrinsic
def _row_of_transposed(typingctx, x, along, count, w, down, left, c):
    """c = W x for a panel of rows of w; count is a multiple of the elements in a cache line."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, along, count, w, down, left, c = args
        emit = _Emitter(context, builder, signature.args[0], SHORT_BYTES)
        groups = VECTORS * VECTOR_BYTES // SHORT_BYTES
        rows = [emit.at(w, row, emit.element) for row in emit.rows(down, left, groups * emit.lanes)]

        def line(values: list[Any]) -> list[Any]:
            x_at, w_at, *sums = values
            places = [
                builder.add(x_at, builder.mul(along, along.type(n)))
                for n in range(LINE // emit.itemsize)
            ]
            for n in range(groups):
                columns = emit.columns(rows[n * emit.lanes : (n + 1) * emit.lanes], w_at)
                for place, column in zip(places, columns, strict=True):
                    sums[n] = multiply_add(builder, emit.broadcast(x, place), column, sums[n])
            x_at = builder.add(x_at, builder.mul(along, along.type(LINE // emit.itemsize)))
            return [x_at, builder.add(w_at, w_at.type(LINE)), *sums]

        zero = count.type(0)
        starts = [zero, zero, *[emit.vector(None)] * groups]
        _, _, *sums = emit.loop(count, LINE // emit.itemsize, starts, line)
        for n, value in enumerate(sums):
            emit.store(value, c, count.type(n * SHORT_BYTES))
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, w, types.intp, types.intp, c), generate


@intrinsic
def _matrix_at(typingctx, pointer, height, width):
    """The elements from the pointer on as an array, row after row."""
    array = types.Array(pointer.dtype, 2, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return array_at(context, builder, array, args[0], list(args[1:]))

    return array(pointer, types.int64, types.int64), generate


@intrinsic
def _after(typingctx, pointer, offset):
    """The pointer ``offset`` bytes on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.pointer_add(builder, *args)

    return pointer(pointer, types.intp), generate


@intrinsic
def _copy_bytes(typingctx, source, target, count):
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, args[1], args[0], args[2], 1)
        return context.get_dummy_value()

    return types.void(source, target, types.intp), generate


_tile = _tile_of(ROWS, VECTORS)
_tile_narrow = _tile_of(ROWS, 1)
_half_tile = _tile_of(HALF, VECTORS)
_row = _tile_of(1, VECTORS)
_row_wide = _tile_of(1, WIDE)


@device
def _pack(b, k0, k1, j0, width, to):
    """The panel b[k0:k1, j0 : j0 + width] to ``to``, its rows 2 vectors apart."""
    item, (down, along) = b.itemsize, b.strides
    short, line = SHORT_BYTES // item, LINE // item
    if down == item and k1 - k0 >= line:
        for j in range(0, width, short):
            at = _at(b, (j0 + j) * along)
            for start in range(k0, k1, line):
                k = min(start, k1 - line)
                there = _after(to, (k - k0) * PANEL_BYTES + j * item)
                _transpose(_after(at, k * item), along, width - j, there, PANEL_BYTES)
    elif along == item and width * item == PANEL_BYTES:
        for k in range(k0, k1):
            row = _at(b, k * down + j0 * item)
            _copy_bytes(row, _after(to, (k - k0) * PANEL_BYTES), PANEL_BYTES)
    else:
        packed = _matrix_at(to, k1 - k0, PANEL_BYTES // item)
        for k in range(k0, k1):
            for j in range(width):
                packed[k - k0, j] = b[k, j0 + j]


@device
def _copy(a, i0, n, k0, k1, to):
    """a[i0 : i0 + n, k0:k1] to ``to``, in the order of a; the strides there in bytes.

    The rows there are an odd number of cache lines apart, so that the cache holds them all.
    """
    item, (down, along) = a.itemsize, a.strides
    source = _at(a, i0 * down + k0 * along)
    if along == item:
        row = DEPTH * item + LINE
        for i in range(n):
            _copy_bytes(_after(source, i * down), _after(to, i * row), (k1 - k0) * item)
        return row, item
    row = BLOCK * item + LINE
    if down == item:
        for k in range(k1 - k0):
            _copy_bytes(_after(source, k * along), _after(to, k * row), n * item)
    else:
        copy = _matrix_at(to, k1 - k0, row // item)
        for k in range(k1 - k0):
            for i in range(n):
                copy[k, i] = a[i0 + i, k0 + k]
    return item, row


@device
def _sum_panel(a, down, along, n, count, b, step, c, row, fresh, narrow):
    """C = A B + C, or A B if ``fresh``, for n rows of a panel, tile by tile."""
    for r in range(0, n, ROWS):
        left, a_at, c_at = n - r, _after(a, r * down), _after(c, r * row)
        if left <= SINGLE:
            for s in range(left):
                a_row, c_row = _after(a_at, s * down), _after(c_at, s * row)
                _row(a_row, 0, along, 1, count, b, step, c_row, 0, fresh)
        elif left <= HALF:
            _half_tile(a_at, down, along, left, count, b, step, c_at, row, fresh)
        elif narrow:
            _tile_narrow(a_at, down, along, left, count, b, step, c_at, row, fresh)
        else:
            _tile(a_at, down, along, left, count, b, step, c_at, row, fresh)


@device
def _sum_row(a, i, b, j0, width, c):
    """c (width) = a[i] @ b[:, j0 : j0 + width]; b is read once, and where it lies if it can be."""
    item, depth, (down, along) = b.itemsize, b.shape[0], b.strides
    x, x_along = _at(a, i * a.strides[0]), a.strides[1]
    panel = scratch(c.dtype, min(DEPTH, depth) * PANEL_BYTES // item)
    packed = _at(panel, 0)
    c = _at(c, 0)
    j = 0
    while along == item and j + WIDE * VECTOR_BYTES // item <= width:
        b_at, c_at = _at(b, (j0 + j) * item), _after(c, j * item)
        _row_wide(x, 0, x_along, 1, depth, b_at, down, c_at, 0, True)
        j += WIDE * VECTOR_BYTES // item
    in_place = down == item and along % ALIAS
    whole = depth - depth % (LINE // item) if in_place else 0
    while j < width:
        here, c_at = min(PANEL_BYTES // item, width - j), _after(c, j * item)
        if whole:
            w = _at(b, (j0 + j) * along)
            _row_of_transposed(x, x_along, whole, w, along, here, c_at)
        for k0 in range(whole, max(depth, 1), DEPTH):
            k1 = min(k0 + DEPTH, depth)
            _pack(b, k0, k1, j0 + j, here, packed)
            x_at = _after(x, k0 * x_along)
            _row(x_at, 0, x_along, 1, k1 - k0, packed, PANEL_BYTES, c_at, 0, k0 == 0)
        j += here
    free(panel)


@device
def _finish(sums, first, row, bias, relu, gate, added, out, i0, n, j0, width):
    """out[i0 : i0 + n, j0 : j0 + width] = sums + bias, through ReLU if wanted; 0 where the gate,
    if there is one, is not positive; or the sums are ``added`` to what is there."""
    for r in range(n):
        part, bias_part, result = sums[first + r * row :], bias[j0:], out[i0 + r, j0:]
        if gate.size:
            gate_part = gate[i0 + r, j0:]
            for j in range(width):
                result[j] = shut(part[j], gate_part[j])
        elif added:
            for j in range(width):
                result[j] += part[j]
        else:
            for j in range(width):
                v = part[j]
                if bias.size:
                    v += bias_part[j]
                result[j] = clamp(v) if relu else v


@device
def _shape_of_block(m, n, item):
    """Rows and columns of a block of C (m, n)."""
    panel = PANEL_BYTES // item
    if m == 1:
        return 1, WIDE * VECTOR_BYTES // item
    across, tall = -(-n // panel), BLOCK
    while tall > 4 * ROWS and -(-m // tall) * across < FEW:
        tall //= 2
    panels = -(-m // BLOCK) * across
    return tall, min(max(panels // 16, 1), GROUP) * panel


@device
def _block(a, b, bias, relu, gate, added, out, number):
    """A block of out = a @ b, then what ``_finish`` does; they are numbered down, then across."""
    m, n, item, panel = out.shape[0], out.shape[1], out.itemsize, PANEL_BYTES // out.itemsize
    tall, wide = _shape_of_block(m, n, item)
    down = -(-m // tall)
    i0, j0 = number % down * tall, number // down * wide
    height, width = min(tall, m - i0), min(wide, n - j0)
    if height == 1:
        sums = scratch(out.dtype, -(-width // panel) * panel)
        _sum_row(a, i0, b, j0, width, sums)
        _finish(sums, 0, 0, bias, relu, gate, added, out, i0, 1, j0, width)
        free(sums)
        return
    copied = wide >= COPIED * panel and height > HALF
    left, vector = height % ROWS, VECTOR_BYTES // item
    inside = width % panel == 0 and (left <= SINGLE or left == HALF)  # no tile passes out's end
    inside |= width % vector == 0 and left == 0
    once = a.shape[1] <= DEPTH  # then the sums are stored, and never loaded again
    in_place = inside and not added and (once or not copied)
    if in_place:
        sums, first, row, across = flat(out), i0 * n + j0, n, panel
    else:
        panels = -(-width // panel)
        sums = scratch(out.dtype, panels * (height + ROWS) * panel)
        first, row, across = 0, panel, (height + ROWS) * panel
    _sum_block(a, b, i0, height, j0, width, copied, left == 0, sums, first, row, across)
    if bias.size or relu or gate.size or not in_place:
        for j in range(0, width, panel):
            here = min(panel, width - j)
            at = first + j // panel * across
            _finish(sums, at, row, bias, relu, gate, added, out, i0, height, j0 + j, here)
    if not in_place:
        free(sums)


@device
def _sum_block(a, b, i0, height, j0, width, copied, whole, sums, first, row, across):
    """sums = a[i0 : i0 + height] @ b[:, j0 : j0 + width], panel after panel."""
    item, depth, panel = b.itemsize, b.shape[0], PANEL_BYTES // b.itemsize
    size = BLOCK * DEPTH + max(BLOCK, DEPTH) * LINE if copied else 0
    memory = scratch(sums.dtype, size + (min(DEPTH, depth) * PANEL_BYTES + LINE) // item)
    packed = _at(memory, 0)
    copy = _after(packed, (min(DEPTH, depth) * panel * item + LINE - 1) // LINE * LINE)
    for k0 in range(0, max(depth, 1), DEPTH):
        k1 = min(k0 + DEPTH, depth)
        down, along = a.strides
        a_at = _at(a, i0 * down + k0 * along)
        if copied:
            down, along = _copy(a, i0, height, k0, k1, copy)
            a_at = copy
        for j in range(0, width, panel):
            here = min(panel, width - j)
            narrow = here * item <= VECTOR_BYTES
            fits = here == panel or (whole and here * item == VECTOR_BYTES)
            source, step = packed, PANEL_BYTES
            if fits and b.strides[1] == item and height < PACKED:
                source, step = _at(b, k0 * b.strides[0] + (j0 + j) * item), b.strides[0]
            else:
                _pack(b, k0, k1, j0 + j, here, packed)
            c = _at(sums, (first + j // panel * across) * item)
            _sum_panel(
                a_at, down, along, height, k1 - k0, source, step, c, row * item, k0 == 0, narrow
            )
    free(memory)


@task
def _product(args, i):
    a, b, bias, relu = matrix(args, 0), matrix(args, 5), vector(args, 10), integer(args, 12) != 0
    _block(a, b, bias, relu, rows(args, 13), integer(args, 19) != 0, rows(args, 16), i)
    return 0


def product(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    gate: np.ndarray | None = None,
    added: bool = False,
) -> Call:
    """out (M, N) = a (M, K) @ b (K, N), as a call.

    Then bias (N) and activation; or 0 where ``gate`` (M, N), the output of a ReLU, is not positive;
    or the product is ``added`` to out. a and b have any strides, the others are contiguous.
    """
    m, n = out.shape
    tall, wide = _shape_of_block(m, n, out.itemsize)
    none = (out, 0)
    return Call(
        _product,
        out.dtype,
        -(-m // tall) * -(-n // wide),
        (
            a, *a.shape, *a.strides, b, *b.shape, *b.strides,
            *(none if bias is None else (bias, n)), activation == "relu",
            *((*none, 0) if gate is None else (gate, m, n)), out, m, n, added,
        ),
        writes=(out,),
        nanoseconds=2 * a.size * n / FLOPS_PER_NANOSECOND,
    )  # fmt: skip
