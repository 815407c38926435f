"""Softmax of rows of every length: from one lane of a warp to a block of 1,024 threads, and rows
that do not fit into registers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels.gpu.rows import held, teams

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
    wide,
)

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

BOTH = ("softmax", "log_softmax")
# (rows, columns): blocks that are not full, and each number of lanes.
SHORT = [(300, 1), (129, 10), (65, 16), (33, 31), (18, 63), (9, 200), (3, 1000), (2, 1024)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_rows(kernels: Kernels, dtype: str) -> None:
    for shape in SHORT:
        for name in BOTH:
            check(kernels, name, normal(shape, dtype), -1)
    check(kernels, "softmax", normal((3, 2, 40), dtype), 2, offset=1)
    check(kernels, "softmax", normal(7, dtype), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(kernels: Kernels, dtype: str) -> None:
    for columns in (1032, 2001):
        for offset in (0, 1):
            check(kernels, "log_softmax", normal((2, columns), dtype), 1, offset=offset)
    assert kernels.used == {"softmax_block"}


@pytest.mark.parametrize("columns", [9000, 9001])
def test_rows_beyond_the_registers(kernels: Kernels, columns: int) -> None:
    by = teams(columns, "float64")
    assert by.threads == 1024 and columns > by.threads * held("float64") * 2
    for name in BOTH:
        check(kernels, name, 3 * normal((1, columns), "float64"), 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_longest_rows_of_a_block(dtype: str) -> None:
    with kernels_on(Device("shuffled")) as k:
        check(k, "log_softmax", normal((1, 33_001), dtype), 1)


def test_who_does_a_row() -> None:
    """Registers for every column, up to 1,024 threads, and no block larger than it need be."""
    for dtype in ("float16", "float32", "float64"):
        pack = 16 // np.dtype(dtype).itemsize
        for columns in [*range(1, 3000), 2**15, 2**15 + 1, 2**20]:
            by = teams(columns, dtype)
            if by.lanes:
                assert by.lanes * by.each == by.threads == 256
                assert by.lanes * held(dtype) * pack >= columns
            else:
                assert 128 <= by.threads <= 1024 and by.each == 1
                assert by.threads == 1024 or by.threads * held(dtype) * pack >= columns
                assert by.threads == 128 or by.threads // 2 * held(dtype) * pack < columns


@pytest.mark.parametrize("columns", [12, 40, 1000, 1500])
def test_infinities_and_nan(kernels: Kernels, columns: int) -> None:
    """Whole threads may see nothing but -∞; NaN and ∞ spoil their own row alone."""
    x = normal((6, columns), "float32")
    x[0, : columns - 2] = -np.inf
    x[1] = -np.inf
    x[2, 5] = np.inf
    x[3, 7] = np.nan
    x[4] = [1e30, *[-1e30] * (columns - 1)]
    for name in BOTH:
        y = check(kernels, name, x, 1)
        assert np.isfinite(y[[4, 5]]).all() and np.isnan(y[[1, 2, 3]]).all()
    assert check(kernels, "softmax", x, 1)[0, -2:].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("columns", [10, 1000, 1030])
def test_a_row_does_not_depend_on_its_neighbours(kernels: Kernels, columns: int) -> None:
    x = normal((20, columns), "float32")
    together = kernels.softmax(x, 1)
    for n in (0, 7, 19):
        alone = kernels.softmax(x[n : n + 1].copy(), 1)
        assert alone.tobytes() == together[n].tobytes()


@settings(max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 1100), st.sampled_from(DTYPES), st.integers(0, 3),
    st.sampled_from(BOTH), st.sampled_from(sorted(shim.ORDERS)), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(
    rows: int, columns: int, dtype: str, offset: int, name: str, order: str, seed: int
) -> None:
    rows = min(rows, 1 + 4000 // columns)
    x = 4 * wide(normal((rows, columns), dtype, seed))
    with kernels_on(Device(order)) as k:
        check(k, name, x.astype(as_dtype(dtype)), 1, offset=offset)


def softmax_of(columns: int) -> object:
    return lambda k: check(k, "softmax", normal((3, columns), "float32"), 1)


PUT = "    if (lane == 0) scratch[warp] = x;\n"
FAULTS = {
    "a missing barrier": ((f"{PUT}    __syncthreads();\n", PUT), 1500),
    "an end behind the end": (("at(k, j) < c ? A(row", "at(k, j) <= c ? A(row"), 13),
    "a pack too few": (("c + size * PACK - 1)", "c - 1)"), 1300),
    "no largest over the team": (("top = team.all(own, A(-INF), Larger())", "top = own"), 40),
    "the end of the row as zeros": (("A(row[at(k, j)]) : fill", "A(row[at(k, j)]) : A(0)"), 13),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str) -> None:
    planted, columns = FAULTS[fault]
    sees(planted, softmax_of(columns))
