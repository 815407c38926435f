"""The Numba backend's own elementary functions: their error, their edges, the same bits anywhere in
a loop; and the rows of softmax, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from tinygrad_ish.kernels import cpu
from tinygrad_ish.kernels.cpu import _intrinsics, _jit, _math, rows

Array = np.ndarray
_jit._numba()  # Numba's own njit may call our functions from here on


@numba.njit(error_model="numpy")
def _erf(x, out):  # no kernel is erf alone
    for i in range(len(out)):
        out[i] = _math.erf(x[i])


def erf(x: Array) -> Array:
    out = np.empty_like(x)
    _erf(x, out)
    return out


def exact_erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.tolist()])


def exact_sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# ours, the same in NumPy or the math module, the largest error allowed in units of the last place
FUNCTIONS: dict[str, tuple[Callable[..., Array], Callable[[Array], Array], float]] = {
    "exp": (cpu.exp, np.exp, 1.0),
    "log": (cpu.log, np.log, 1.0),
    "tanh": (cpu.tanh, np.tanh, 2.0),
    "erf": (erf, exact_erf, 2.0),
    "sigmoid": (cpu.sigmoid, exact_sigmoid, 2.5),
}
EVERY = 4001  # of the 2³² bit patterns of float32
WITHOUT_FMA = 0 if _intrinsics.HAS_FMA else 0.1  # each multiply-add rounds once more


def last_place(x: Array, dtype: Any) -> Array:
    """The distance between numbers of this dtype near x (float64)."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.abs(x))
    least = info.minexp - info.nmant
    return np.ldexp(1.0, np.maximum(exponent - info.nmant - 1, least))


def errors(got: Array, exact: Array) -> Array:
    """In units of the last place; 0 where both are the same infinity or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        same = got == exact.astype(got.dtype)
        distance = np.abs(got.astype(np.float64) - exact) / last_place(exact, got.dtype)
    return np.where(same | (np.isnan(got) & np.isnan(exact)), 0, distance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_over_the_whole_range(name: str) -> None:
    ours, exact, allowed = FUNCTIONS[name]
    x = np.arange(0, 2**32, EVERY, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        found = errors(ours(x), exact(x.astype(np.float64)))
    worst = np.argmax(found)  # of a NaN, its place
    assert found[worst] <= allowed + WITHOUT_FMA, (
        f"{name}({x[worst]!r}) is {found[worst]:.2f} ulp off"
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_over_the_whole_range(name: str) -> None:
    """Beside NumPy's float64, which is off by itself: by one unit, or two in tanh and sigmoid."""
    ours, exact, allowed = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 200_000, dtype=np.uint64).view(np.float64)
    x = np.concatenate([bits, rng.normal(size=200_000), rng.uniform(-750, 750, 100_000)])
    with np.errstate(all="ignore"):
        found = errors(ours(x), exact(x))
    worst = np.argmax(found)
    assert found[worst] <= allowed + 2, f"{name}({x[worst]!r}) is {found[worst]:.2f} ulp off"


INF, NAN = math.inf, math.nan
EDGES = {  # arguments and results
    "exp": ([0, -0.0, INF, -INF, NAN, 1e4, -1e4], [1, 1, INF, 0, NAN, INF, 0]),
    "log": ([1, 0, -0.0, INF, -1, -INF, NAN], [0, -INF, -INF, INF, NAN, NAN, NAN]),
    "tanh": ([0, -0.0, INF, -INF, NAN, 30, -30], [0, -0.0, 1, -1, NAN, 1, -1]),
    "erf": ([0, -0.0, INF, -INF, NAN, 7, -7], [0, -0.0, 1, -1, NAN, 1, -1]),
    "sigmoid": ([0, -0.0, INF, -INF, NAN, 1e4, -1e4], [0.5, 0.5, 1, 0, NAN, 1, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(name: str, dtype: str) -> None:
    x, expected = np.array(EDGES[name], dtype)
    got = FUNCTIONS[name][0](x)
    np.testing.assert_array_equal(got, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denormals(dtype: str) -> None:
    least = np.finfo(dtype).smallest_subnormal
    x = least * np.array([1, -1, 2, 1000], dtype)
    np.testing.assert_array_equal(cpu.tanh(x), x)
    near_zero = FUNCTIONS["erf"][0](x) / least
    np.testing.assert_allclose(near_zero, 2 / math.sqrt(math.pi) * x / least, atol=1)
    np.testing.assert_allclose(cpu.log(np.abs(x)), np.log(np.abs(x)), rtol=1e-6)
    np.testing.assert_allclose(cpu.exp(cpu.log(np.abs(x))) / least, np.abs(x) / least, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*FUNCTIONS, "gelu"])
def test_the_same_bits_anywhere_in_a_loop(name: str, dtype: str) -> None:
    """In vectors and in what is left after them, at any offset, and in place."""
    ours = cpu.gelu if name == "gelu" else FUNCTIONS[name][0]
    rng = np.random.default_rng(0)
    x = (rng.normal(size=80) * 10.0 ** rng.integers(-3, 3, 80)).astype(dtype)
    x[::13] = [0.0, -0.0, INF, -INF, NAN, 1e-39, -90.0]
    together = ours(x)
    for n in range(1, 71):
        for start in (0, 1, 5, 80 - n):
            part = x[start : start + n]
            assert ours(part).tobytes() == together[start : start + n].tobytes(), (start, n)
    if name != "erf":
        again = x.copy()
        assert ours(again, out=again).tobytes() == together.tobytes()


# --- rows ------------------------------------------------------------------------------------


@numba.njit(error_model="numpy")
def _exp_rows(x, p, tops, totals):
    rows.exp_rows(x, p, tops, totals)


@numba.njit(error_model="numpy")
def _fold(x, out):
    out[0], out[1] = rows.row_max((x,), ()), rows.row_sum((x,), ())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 2, 10, 15, 16, 17, 100, 4096, 5000])
def test_a_row_of_softmax_is_as_if_alone(width: int, dtype: str) -> None:
    rng = np.random.default_rng(width)
    x = (rng.integers(-999, 999, (20_000 // width % 997 + 3, width)) / 64).astype(dtype)
    for kernel in (cpu.softmax, cpu.log_softmax):
        together = kernel(x, 1)
        for n in range(min(len(x), 50)):
            assert kernel(x[n : n + 1], 1).tobytes() == together[n].tobytes()
    p, tops, totals = np.empty_like(x), np.empty_like(x[:, 0]), np.empty(len(x))
    _exp_rows(x, p, tops, totals)
    np.testing.assert_array_equal(tops, x.max(1))
    wide = x.astype(np.float64)
    exact = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1))
    np.testing.assert_allclose(np.log(totals), exact, rtol=4 * np.finfo(dtype).eps, atol=1e-15)


def test_softmax_is_exact_to_some_last_places() -> None:
    """Where x - max x is exact: the exponential, the factor and the product round, no long sum."""
    x = np.random.default_rng(0).integers(-8, 1, (4, 30_000)).astype(np.float32)
    x[:, 0] = 0
    e = np.exp(x.astype(np.float64))
    assert errors(cpu.softmax(x, 1), e / e.sum(1, keepdims=True)).max() <= 3


def test_softmax_of_rows_with_infinities_and_nan() -> None:
    x = np.array([[0, -INF, 0], [INF, 0, 0], [-INF] * 3, [0, NAN, 0], [NAN, 1, 2]], np.float32)
    expected = np.array([[0.5, 0, 0.5], *[[NAN] * 3] * 4], np.float32)
    np.testing.assert_array_equal(cpu.softmax(x, -1), expected)
    logs = np.array([[-math.log(2), -INF, -math.log(2)], *[[NAN] * 3] * 4], np.float32)
    np.testing.assert_array_equal(cpu.log_softmax(x, -1), logs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_folds_of_a_row_of_any_length(dtype: str) -> None:
    """Of whole numbers, whose sums are exact; what lies around the row is left alone."""
    room = np.full(120, NAN, dtype)
    for n in range(101):
        x = room[7 : 7 + n]
        x[:] = np.random.default_rng(n).integers(-99, 99, n)
        out = np.empty(2)
        _fold(x, out)
        assert out.tolist() == [x.max(initial=-INF), x.sum()]
        room[:] = NAN
