"""Reductions where the common table does not reach: long rows, many rows, wide and narrow columns,
in one stage and in two; 16 bits; which bits come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import shim
from .checks import (
    DTYPES,
    Device,
    Kernels,
    as_dtype,
    check,
    kernels_on,
    normal,
    sees,
)

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

SHAPES: list[tuple[tuple[int, ...], Any, set[str]]] = [
    ((70, 3), 1, {"lanes"}),
    ((3, 1024), 1, {"lanes"}),
    ((9, 1021), 1, {"lanes"}),
    ((3, 1025), 1, {"rows"}),
    ((2, 8194), 1, {"rows", "finish"}),
    ((20_003,), None, {"rows", "finish"}),
    ((20_000,), None, {"rows", "finish"}),
    ((5, 7), 0, {"columns"}),
    ((40, 1), 0, {"lanes"}),
    ((100, 130), 0, {"columns", "finish"}),
    ((600, 10), 0, {"columns", "finish"}),
    ((200, 131), 0, {"columns", "finish"}),
    ((3, 600, 5), 1, {"columns", "finish"}),
    ((2, 3, 4, 5), (1, 2), {"columns"}),
    ((4, 1, 6), (0, 1, 2), {"lanes"}),
]


def summands(shape: Any, dtype: str) -> np.ndarray:
    """Numbers whose sums keep their digits: positive ones."""
    return abs(normal(shape, dtype)) + as_dtype(dtype).type(0.25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis, stages", SHAPES)
def test_sums_and_extremes(
    kernels: Kernels,
    shape: Any,
    axis: Any,
    stages: set[str],
    dtype: str,
) -> None:
    x = summands(shape, dtype) / as_dtype(dtype).type(8)
    check(kernels, "sum", x, axis)
    check(kernels, "mean", x, axis, True, 1, offset=1)
    check(kernels, "amax", x, axis)
    check(kernels, "amin", -x, axis, offset=1)
    if dtype in ("float16", "bfloat16"):  # longer packs, so longer chunks: one stage may do
        assert {name.split("_")[1] for name in kernels.used} <= stages
    elif dtype == "float32":
        assert {name.split("_")[1] for name in kernels.used} == stages


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    first = draw(st.integers(0, len(shape) - 1))
    last = draw(st.integers(first, len(shape)))
    return shape, tuple(range(first, last))


@settings(max_examples=50)
@given(cases(), st.sampled_from(DTYPES), st.sampled_from(list(shim.ORDERS)), st.booleans())
def test_any_neighbouring_axes(case: Any, dtype: str, order: str, keepdims: bool) -> None:
    shape, axes = case
    x = summands(shape, dtype)
    small = tuple(1 if a in axes else n for a, n in enumerate(shape))
    with kernels_on(Device(order)) as k:
        check(k, "sum", x, axes, keepdims)
        check(k, "sum_to", x, small)
        check(k, "amax", x, axes, keepdims)
        check(k, "mean_backward", normal(small, dtype), shape)
        assert k.used


def test_axes_apart_are_the_references(kernels: Kernels) -> None:
    check(kernels, "sum", normal((3, 4, 5), "float32"), (0, 2))
    check(kernels, "sum", np.arange(6).reshape(2, 3), 1)
    assert kernels.sum(np.ones((0, 3), "float32"), 0).tolist() == [0, 0, 0]
    assert not kernels.used
    with pytest.raises(ValueError, match="zero-size"):
        kernels.amax(np.ones((0, 3), "float32"), 0)
    for axis in (2, (0, 0), -3):
        with pytest.raises(ValueError, match="axis"):
            kernels.sum(np.ones((2, 3), "float32"), axis)


@pytest.mark.parametrize("shape, axis, stages", SHAPES)
def test_the_bits_follow_the_shape_alone(shape: Any, axis: Any, stages: set[str]) -> None:
    """Not the order of blocks, the number of multiprocessors or the alignment."""
    x = normal(shape, "float32")
    results = set()
    for order, multiprocessors, offset in [
        ("forward", 2, 0),
        ("reverse", 1, 1),
        ("shuffled", 7, 2),
    ]:
        device = Device(order)
        device.multiprocessors = multiprocessors
        memory = np.empty(x.size + 8, "float32")
        start = -(memory.ctypes.data // 4) % 4 + offset
        given = memory[start : start + x.size].reshape(shape)
        given[...] = x
        with kernels_on(device) as k:
            results.add(k.sum(given, axis).tobytes())
    assert len(results) == 1


def test_sixteen_bits_add_up_as_floats(kernels: Kernels) -> None:
    ones = np.ones(5000, "float16")
    assert kernels.sum(ones) == 5000  # adding 1 to 2048 in float16 gives 2048
    assert kernels.mean(np.full((2, 70_000), 2, "float16"), 1).tolist() == [2, 2]
    assert kernels.sum(np.ones((5000, 2), "float16"), 0).tolist() == [5000, 5000]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinities(kernels: Kernels, dtype: str) -> None:
    x = normal((3, 2000), dtype)
    x[0, 1999], x[1, 7], x[2, 0], x[2, 5] = np.nan, np.inf, -np.inf, np.inf
    for name in ("amax", "amin", "sum", "mean"):
        check(kernels, name, x, 1)
        check(kernels, name, np.ascontiguousarray(x.T), 0)
    np.testing.assert_array_equal(kernels.argmax(x, 1), [1999, 7, 5])
    np.testing.assert_array_equal(kernels.argmin(x, 1)[[0, 2]], [1999, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_place_of_the_largest(kernels: Kernels, dtype: str) -> None:
    for shape, axis in [((40, 10), 1), ((3, 1003), -1), ((2, 3, 33), 2), ((5, 77), None)]:
        x = np.round(normal(shape, dtype).astype(np.float32)).astype(as_dtype(dtype))  # many ties
        for name in ("argmax", "argmin"):
            check(kernels, name, x, axis)
            check(kernels, name, x, axis, True, offset=1)
    assert kernels.used == {"arg_rows"}
    everywhere = np.full((1, 50), -np.inf).astype(as_dtype(dtype))
    assert kernels.argmax(everywhere, 1) == 0 and kernels.argmin(-everywhere, 1) == 0


@pytest.mark.parametrize(
    "fault",
    [
        ("        __syncthreads();\n        if (line < half)", "        if (line < half)"),
        ("min(n, start + length)", "min(n, start + length - 1)"),
        ("i += size) total = f(total, A(x[i]));", "i += size + 1) total = f(total, A(x[i]));"),
        ("by = int(lanes) / 2", "by = int(lanes) / 4"),
        ("rest % uint32(chunks) * length", "rest % uint32(chunks)"),
        ("total / A(divisor)", "total"),
        ("return a > b || a != a ? a : b;", "return a > b ? a : b;"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(fault: tuple[str, str]) -> None:
    def run(k: Kernels) -> None:
        nan = normal((3, 2000), "float32")
        nan[:, 7] = np.nan
        check(k, "amax", nan, 1)
        for shape, axis, _ in SHAPES:
            check(k, "sum", summands(shape, "float32"), axis)
            check(k, "mean", summands(shape, "float32"), axis)

    sees(fault, run)
