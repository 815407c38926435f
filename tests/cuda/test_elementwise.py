"""Elementwise kernels where the common table does not reach: every way to broadcast, many blocks,
in place, 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels.gpu.elementwise import broadcast_place

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

UNARY = ("neg", "exp", "tanh", "sigmoid", "relu", "gelu")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "relu_backward", "gelu_backward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 8, 1025])
def test_functions(kernels: Kernels, n: int, dtype: str) -> None:
    for name in UNARY:
        for offset in (0, 1):
            check(kernels, name, normal(n, dtype), offset=offset)
    for name in ("log", "sqrt"):
        check(kernels, name, abs(normal(n, dtype)) + as_dtype(dtype).type(0.1))
    check(kernels, "gelu", normal(n, dtype), "tanh")
    assert kernels.used == {*[f"map_{name}" for name in (*UNARY, "log", "sqrt", "gelu_tanh")]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_operands(kernels: Kernels, dtype: str) -> None:
    a, b = normal((5, 33), dtype), normal((5, 33), dtype, 1)
    b[abs(b) < 0.1] = 0.5
    for name in BINARY:
        for offset in (0, 1):
            check(kernels, name, a, b, offset=offset)
    check(kernels, "gelu_backward", a, b, "tanh")
    assert kernels.used == {*[f"zip_{n}" for n in BINARY], "zip_gelu_tanh_backward"}


def test_more_than_the_grid_takes_at_once(kernels: Kernels) -> None:
    n = 2 * 8 * 256 * 4 * 2 + 13  # blocks of the shim's device, threads, numbers; twice
    check(kernels, "relu", normal(n, "float32"))
    check(kernels, "add", normal(n, "float32"), normal(n, "float32", 1))
    check(kernels, "mul", normal((n // 11, 11), "float32"), normal(11, "float32"))
    assert kernels.used == {"map_relu", "zip_add", "zip_mul"}


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and one that broadcasts to it."""
    full = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    small = tuple(draw(st.sampled_from((1, n))) for n in full)
    return full, small[draw(st.integers(0, len(small) - 1)) :]


@settings(max_examples=60)
@given(broadcasts(), st.sampled_from(DTYPES), st.sampled_from(list(shim.ORDERS)), st.integers(0, 1))
def test_broadcasting(shapes: Any, dtype: str, order: str, offset: int) -> None:
    full, small = shapes
    a, b = normal(full, dtype), normal(small, dtype, 1)
    with kernels_on(Device(order)) as k:
        for name in ("sub", "maximum"):
            check(k, name, a, b, offset=offset)
            check(k, name, b, a, offset=offset)
        whole = full == small or broadcast_place(small, full) is not None
        assert bool(k.used) == whole  # else the reference did it


@settings(max_examples=200)
@given(broadcasts())
def test_the_place_in_the_smaller_operand(shapes: Any) -> None:
    full, small = shapes
    numbers = np.broadcast_to(np.arange(np.prod(small, dtype=int)).reshape(small), full).ravel()
    place = broadcast_place(small, full)
    shared = [n == m for n, m in zip((1,) * (len(full) - len(small)) + small, full) if m != 1]
    if place is None:
        assert "".join("01"[s] for s in shared).strip("0").count("0")
    else:
        mid, inner = place
        assert (np.arange(len(numbers)) // inner % mid == numbers).all()


def test_shapes_that_do_not_broadcast_have_no_place() -> None:
    for small, full in [((2,), (3,)), ((1, 3), (3,)), ((3, 1), (2, 5)), ((3, 1, 5), (3, 2, 5))]:
        assert broadcast_place(small, full) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_numbers(kernels: Kernels, dtype: str) -> None:
    a = normal((3, 5), dtype)
    a[abs(a) < 0.1] = 0.5
    for name in ("add", "sub", "mul", "div", "maximum", "minimum"):
        for number in (2.5, 3, True):
            check(kernels, name, a, number)
            check(kernels, name, number, a)
    assert len(kernels.used) == 6


def test_a_numpy_number_widens_as_ever(kernels: Kernels) -> None:
    assert kernels.add(np.ones(3, "float32"), np.float64(0.5)).dtype == np.float64
    assert not kernels.used


def test_in_place(kernels: Kernels) -> None:
    a, b, row = normal((6, 9), "float32"), normal((6, 9), "float32", 1), normal(9, "float32", 2)
    calls = [
        ("sub", (a, b), a, lambda: a - b),
        ("sub", (a, b), b, lambda: a - b),
        ("div", (a, row), a, lambda: a / row),
        ("sub", (row, b), b, lambda: row - b),
        ("mul", (2.0, a), a, lambda: 2 * a),
        ("exp", (a,), a, lambda: np.exp(a)),
    ]
    for name, operands, out, truth in calls:
        expected = truth()
        assert getattr(kernels, name)(*operands, out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    view = np.zeros((9, 6), "float32").T
    assert kernels.add(a, b, out=view) is view
    np.testing.assert_array_equal(view, a + b)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.relu(a[:-1], out=a[1:])


def test_gelu_names_its_forms(kernels: Kernels) -> None:
    for call in (lambda: kernels.gelu(np.ones(2), "erf"),
                 lambda: kernels.gelu_backward(np.ones(2), np.ones(2), "erf")):  # fmt: skip
        with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
            call()


@pytest.mark.parametrize(
    "fault",
    [
        ("if (row >= mid) row -= mid;", ""),
        ("columns(step % inner)", "columns(step)"),
        ("n - i, aligned);\n        Place", "n - i, true);\n        Place"),
        ("swapped ? y - x : x - y", "x - y"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(fault: tuple[str, str]) -> None:
    def run(k: Kernels) -> None:
        for shape, row in [((4099, 5), (5,)), ((4099, 5), (4099, 1))]:
            a, b = normal(shape, "float32"), normal(row, "float32", 1)
            check(k, "sub", a, b)
            check(k, "sub", b, a, offset=1)

    sees(fault, run)
