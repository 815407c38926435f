"""Matrix products by cuBLAS, and what surrounds them in a linear layer (``cu/linear.cu``,
``cu/int8.cu``).

float32 is multiplied as float32, unless ``set_float32_matmul_precision`` allows TF32; float16 and
bfloat16 are added up in float32. The same call gives the same bits each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..reference import (
    Array,
    check_linear,
    check_linear_backward,
    check_linear_int8,
    namespace,
    wider,
)
from . import _blaslt, _launch
from ._arrays import FLOATS, address, deliver, destination
from ._blas import multiply

__all__ = ["linear", "linear_backward", "linear_int8", "matmul"]

WARPS = 8  # of a block in linear.cu and int8.cu: each takes rows of 32 packs
# Rows of g that one block adds up at least, and blocks that there may be at most; fixed numbers, so
# that the sums depend on the shape alone.
LEAST_ROWS, MOST_CHUNKS = 128, 1024

# Let cuBLASLt add the bias and apply ReLU where it can. That saves a pass over the output, 8 bytes
# of float32 for each element, but its search may choose a slower product. Not measured on a GPU
# yet: ``python -m benchmarks.epilogues`` clocks both.
EPILOGUES_IN_CUBLASLT = False

FEW_ROWS = 16  # of x, up to which linear_int8 reads the weights as they are
CHUNK, PIECE = 512, 2048  # int8.cu: weights of a row in one go, and for one block


def _floats(*arrays: Array | None) -> bool:
    """Whether the arrays are of one dtype that cuBLAS takes."""
    given = [x for x in arrays if x is not None]
    return given[0].dtype.name in FLOATS and all(x.dtype == given[0].dtype for x in given)


def _contiguous(x: Array) -> Array:
    return x if x.flags.c_contiguous else namespace(x).ascontiguousarray(x)


def _packed(length: int, *arrays: Array | None) -> bool:
    """Whether rows of so many numbers are whole packs of 16 bytes in all of the arrays."""
    given = [x for x in arrays if x is not None]
    aligned = all(address(x) % 16 == 0 for x in given)
    return aligned and length * given[0].itemsize % 16 == 0


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The matrix product of (…, M, K) and (…, K, N) → (…, M, N); a one-dimensional operand is a
    row (left) or a column (right), and its axis is dropped from the result."""
    if not (a.ndim and b.ndim and _floats(a, b)):
        return reference.matmul(a, b, out)
    left = a if a.ndim > 1 else a[None]
    right = b if b.ndim > 1 else b[:, None]
    try:
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        return reference.matmul(a, b, out)  # which says what does not fit
    if left.shape[-1] != right.shape[-2]:
        return reference.matmul(a, b, out)
    matrices = (*lead, left.shape[-2], right.shape[-1])
    shape = lead + left.shape[-2:-1] * (a.ndim > 1) + right.shape[-1:] * (b.ndim > 1)
    y = destination(out, shape, a.dtype, a, b)
    multiply(left, right, y.reshape(matrices))
    return deliver(y, out)


def linear(
    x: Array,
    w: Array,
    b: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """x wᵀ + b, then ReLU if ``activation`` is "relu". x (N, D), w (K, D), b (K,) → (N, K)."""
    check_linear(x, w, b, activation)
    if not _floats(x, w, b):
        return reference.linear(x, w, b, activation, out)
    inputs = (x, w) if b is None else (x, w, b)
    y = destination(out, (x.shape[0], w.shape[0]), x.dtype, *inputs)
    b = None if b is None else _contiguous(b)
    relu = activation == "relu"
    if not (EPILOGUES_IN_CUBLASLT and b is not None and _blaslt.linear(x, w, b, relu, y)):
        multiply(x, w.T, y)
        if b is not None or relu:
            _finish(y, b, relu)
    return deliver(y, out)


def _finish(y: Array, b: Array | None, relu: bool) -> None:
    """Add the bias and apply ReLU in place."""
    n, k = y.shape
    packed = _packed(k, y, b)
    strips = _strips(y, packed)
    blocks = -(-_launch.blocks_for(y.size, 256 * (16 // y.itemsize)) // max(strips, 1))
    args = (y, b, n, k, relu, packed)
    _launch.launch("linear", "bias_and_relu", y.dtype, (strips, blocks), 32 * WARPS, args)


def _strips(x: Array, packed: bool) -> int:
    """How often x's columns hold those of a block, 32 packs or 32 numbers."""
    return -(-x.shape[1] // (32 * (16 // x.itemsize if packed else 1)))


def linear_backward(
    g: Array,
    x: Array,
    w: Array,
    y: Array | None = None,
    activation: str | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of ``linear``: dx = g w, dw = gᵀ x, db = Σₙ g; None where not needed.

    With activation "relu", g is zeroed first where y <= 0; y is the output of ``linear``.
    """
    check_linear_backward(g, x, w, y, activation)
    if not _floats(g, x, w, y):
        return reference.linear_backward(g, x, w, y, activation, needs, out)
    inputs = (g, x, w, y)
    given = [a for a in inputs if a is not None]
    shapes = (x.shape, w.shape, w.shape[:1])
    dx, dw, db = (
        destination(o, shape, x.dtype, *given) if needed else None
        for o, shape, needed in zip(out, shapes, needs, strict=True)
    )
    gate = y if activation == "relu" and any(needs) else None
    if gate is not None or db is not None:
        g = _gate_and_sum(_contiguous(g), None if gate is None else _contiguous(gate), db)
    if dx is not None:
        multiply(g, w, dx)
    if dw is not None:
        multiply(g.T, x, dw)
    first, second, third = (
        None if r is None else deliver(r, o) for r, o in zip((dx, dw, db), out, strict=True)
    )
    return first, second, third


def _gate_and_sum(g: Array, y: Array | None, db: Array | None) -> Array:
    """g, in new memory and zeroed where y <= 0 if y is given; its column sums go to db."""
    n, k = g.shape
    empty = namespace(g).empty
    gated = None if y is None else empty(g.shape, g.dtype)
    most = max(1, MOST_CHUNKS // max(1, _strips(g, True)))
    rows = max(LEAST_ROWS, -(-n // most))
    chunks = max(1, -(-n // rows))
    wide = wider(g.dtype)
    partial = empty((chunks, k), wide) if db is not None and chunks > 1 else None
    packed = _packed(k, g, y, gated)
    args = (g, y, gated, partial, db, n, k, rows, packed)
    grid = (_strips(g, packed), chunks)
    _launch.launch("linear", "gate_and_sum", g.dtype, grid, 32 * WARPS, args)
    if partial is not None:
        _launch.launch("linear", "sum_chunks", g.dtype, -(-k // 32), 1024, (partial, db, chunks, k))
    return g if gated is None else gated


def linear_int8(
    x: Array,
    w8: Array,
    scale: Array,
    b: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """``linear`` with the weights scale[k] · w8[k, d], 8 bits each: (x w8ᵀ) · scale + b, then ReLU.

    x (N, D) floating, w8 (K, D) int8, scale (K,) float32 (float64 for an x of float64), b (K,) like
    x → (N, K) like x. For up to 16 rows the weights are read as they are, and a row's answer does
    not depend on the others; for more they become numbers of x's dtype, for cuBLAS.
    """
    check_linear_int8(x, w8, scale, b, activation)
    if not _floats(x, b):
        return reference.linear_int8(x, w8, scale, b, activation, out)
    inputs = (x, w8, scale) if b is None else (x, w8, scale, b)
    y = destination(out, (x.shape[0], w8.shape[0]), x.dtype, *inputs)
    w8, scale = _contiguous(w8), _contiguous(scale)
    b = None if b is None else _contiguous(b)
    relu = activation == "relu"
    if x.shape[0] <= FEW_ROWS:
        _few_rows(_contiguous(x), w8, scale, b, relu, y)
        return deliver(y, out)
    multiply(x, _dequantized(w8, scale, x.dtype).T, y)
    if b is not None or relu:
        _finish(y, b, relu)
    return deliver(y, out)


def _few_rows(x: Array, w8: Array, scale: Array, b: Array | None, relu: bool, y: Array) -> None:
    (n, d), k, wide = x.shape, w8.shape[0], wider(x.dtype)
    pieces = max(1, -(-d // PIECE))
    partial = None if pieces == 1 else namespace(x).empty((pieces, n, k), wide)
    rows, columns = 1 if n == 1 else 8, WARPS * (2 if wide == np.float64 else 4)
    grid = (-(-k // columns), pieces, -(-n // rows))
    args = (x, w8, scale, b, partial, y, n, d, k, PIECE, rows, relu, _packed(d, w8))
    _launch.launch("int8", "linear_int8", x.dtype, grid, 32 * WARPS, args)
    if partial is not None:
        rest = (partial, scale, b, y, n, k, pieces, relu)
        _launch.launch("int8", "add_pieces", x.dtype, (-(-k // 256), n), 256, rest)


def _dequantized(w8: Array, scale: Array, dtype: Any) -> Array:
    """The weights as numbers of this dtype, in new memory."""
    k, d = w8.shape
    w = namespace(w8).empty((k, d), dtype)
    packed = _packed(d, w8) and _packed(d, w)
    args = (w8, scale, w, k, d, packed)
    _launch.launch("int8", "dequantize", dtype, _launch.blocks_for(k, WARPS), 32 * WARPS, args)
    return w
