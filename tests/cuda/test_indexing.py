"""Indexing where the common table does not reach: sorts of several blocks, runs of equal positions
over many chunks, positions out of range, 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels.gpu import indexing

from . import shim
from .checks import DTYPES, Device, Kernels, check, kernels_on, normal, sees, wide

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))


def positions(m: int, n: int, seed: int = 0, skew: bool = False) -> np.ndarray:
    """m positions in -n..n-1; skewed, most of them are one."""
    rng = np.random.default_rng(seed)
    index = rng.integers(-n, n, m)
    index[rng.random(m) < 0.8 * skew] = n // 2
    return index


def added(g: np.ndarray, index: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient in float64; positions out of range are left out."""
    n, rest = shape[axis], (*shape[:axis], *shape[axis + 1 :])
    out = np.zeros((n, *rest))
    rows = np.moveaxis(wide(g).reshape(*shape[:axis], index.size, *shape[axis + 1 :]), axis, 0)
    for i, row in zip(index.ravel(), rows, strict=True):
        if -n <= i < n:
            out[i] += row
    return np.moveaxis(out, 0, axis)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, m, axis",
    [
        ((7, 5), 40, 0),
        ((50, 64), 1, 0),
        ((9, 300), 33, 0),
        ((3, 7, 5), 6, 1),
        ((4, 9), 70, 1),
        ((6,), 5, 0),
    ],
)
def test_rows_taken_and_added(
    kernels: Kernels,
    shape: tuple[int, ...],
    m: int,
    axis: int,
    dtype: str,
) -> None:
    index = positions(m, shape[axis])
    taken = (*shape[:axis], m, *shape[axis + 1 :])
    g = abs(normal(taken, dtype))
    for offset in (0, 1):
        check(kernels, "index_select", normal(shape, dtype), index, axis, offset=offset)
        truth = added(g, index, axis, shape)
        check(kernels, "index_select_backward", g, index, axis, shape, offset=offset, truth=truth)
    assert kernels.used >= {"select_rows", "sort_span", "sum_runs"}


@pytest.mark.parametrize("order", shim.TESTED)
@pytest.mark.parametrize(
    "m, n, skew", [(64, 1, False), (70, 3, True), (2049, 40, True), (9000, 500, False)]
)
def test_long_indices(order: str, m: int, n: int, skew: bool) -> None:
    index, g = positions(m, n, m, skew), abs(normal((m, 5), "float32"))
    with kernels_on(Device(order)) as k:
        result = k.index_select_backward(g, index, 0, (n, 5))
    np.testing.assert_allclose(result, added(g, index, 0, (n, 5)), rtol=1e-5)
    with kernels_on(Device()) as k:  # whatever ran first, the bits are the same
        assert k.index_select_backward(g, index, 0, (n, 5)).tobytes() == result.tobytes()


@pytest.mark.parametrize("order", shim.TESTED)
@pytest.mark.parametrize("m", [1, 2, 3, 2048, 2049, 8192])
def test_sorted_keys(order: str, m: int) -> None:
    with kernels_on(Device(order)):
        check_sorted(m)


def check_sorted(m: int) -> None:
    index = positions(m, 97, m)
    index[:: m // 3 + 1] = 97  # out of range
    keys = indexing._sorted_keys(index, 97, np.dtype("float32"))[:m]
    rows = np.where(index < 0, index + 97, index)
    np.testing.assert_array_equal(keys & np.uint64(0xFFFFFFFF), np.argsort(rows, kind="stable"))
    np.testing.assert_array_equal(keys >> np.uint64(32), np.sort(rows))


@settings(max_examples=60)
@given(
    st.integers(1, 150), st.integers(1, 6), st.integers(1, 40), st.integers(0, 9), st.booleans(),
    st.sampled_from(list(shim.ORDERS)),
)  # fmt: skip
def test_any_gradient(m: int, n: int, d: int, seed: int, skew: bool, order: str) -> None:
    index = positions(m, n, seed, skew).reshape(1, m)
    g = abs(normal((1, m, d), "float64", seed))
    with kernels_on(Device(order)) as k:
        check(k, "index_select_backward", g, index, 0, (n, d), truth=added(g, index, 0, (n, d)))


def test_positions_out_of_range(kernels: Kernels) -> None:
    index = np.array([0, 3, -4, 2, 10**12, -1, -(10**12)])
    outside = [1, 2, 4, 6]
    x, g = normal((3, 2), "float32"), normal((7, 2), "float32")
    taken = kernels.index_select(x, index, 0)
    assert np.isnan(taken[outside]).all()
    np.testing.assert_array_equal(taken[[0, 3, 5]], x[[0, 2, 2]])
    check(kernels, "index_select_backward", g, index, 0, (3, 2), truth=added(g, index, 0, (3, 2)))
    everything = np.full(70, 3)
    assert not kernels.index_select_backward(
        normal((70, 2), "float32"), everything, 0, (3, 2)
    ).any()
    row, gone = normal((1, 3), "float32"), normal((1, 7), "float32")
    np.testing.assert_array_equal(
        np.isnan(kernels.gather(row, index[None], 1)[0]), np.isin(range(7), outside)
    )
    expected = added(gone[0], index, 0, (3,))[None]
    check(kernels, "gather_backward", gone, index[None], 1, (1, 3), truth=expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, n, k", [(40, 10, 1), (3, 33, 7), (1, 1, 5), (5, 300, 2)])
def test_gathered(kernels: Kernels, rows: int, n: int, k: int, dtype: str) -> None:
    index = positions(rows * k, n).reshape(rows, k)
    g = abs(normal((rows, k), dtype))
    truth = np.stack([added(wide(a), i, 0, (n,)) for a, i in zip(g, index, strict=True)])
    for offset in (0, 1):
        check(kernels, "gather", normal((rows, n), dtype), index, 1, offset=offset)
        check(kernels, "gather_backward", g, index, -1, (rows, n), offset=offset, truth=truth)
    assert kernels.used == {"gather", "gather_backward"}


def test_many_blocks(kernels: Kernels) -> None:
    rows = 5000
    index = positions(rows, 3).reshape(rows, 1)
    check(kernels, "gather", normal((rows, 3), "float32"), index, 1)
    check(kernels, "index_select", normal((5, 2), "float32"), positions(rows, 5), 0)
    g = normal((rows, 1), "float32")
    expected = np.zeros((rows, 3))
    np.put_along_axis(expected, index, g, 1)
    check(kernels, "gather_backward", g, index, 1, (rows, 3), truth=expected)


def test_the_references_share(kernels: Kernels) -> None:
    x, index = np.arange(6).reshape(2, 3), np.array([1])
    assert kernels.index_select(x, index, 1).tolist() == [[1], [4]]
    assert kernels.gather(np.arange(6.0).reshape(2, 3), np.array([[1, 0, 1]]), 0).tolist() == [
        [3, 1, 5]
    ]
    assert not kernels.used
    assert kernels.index_select(np.ones((3, 2)), np.array([], np.int64), 0).shape == (0, 2)
    nothing = kernels.index_select_backward(np.ones((0, 2)), np.array([], np.int64), 0, (3, 2))
    assert nothing.tolist() == [[0, 0]] * 3
    g = np.ones((2, 2))
    with pytest.raises(ValueError, match="overlaps"):
        kernels.gather_backward(g, np.zeros((2, 2), np.int64), 1, (2, 2), out=g)


SORTING = [
    ("distance /= 2) {\n            __syncthreads();", "distance /= 2) {"),
    ("(low & stage) == 0", "true"),
    ("row << 32 | uint64(p)", "row << 32 | uint64(m - p)"),
]
ADDING = [
    ("total.v[j];\n    __syncthreads();", "total.v[j];"),
    ("if (goes_on) total.keep(edge, left);\n                else", "if (false) ; else"),
    ("else if (row == next) total.keep(edge + d, left);", ""),
    ("k <= more", "k < more"),
    ("w < warps", "w < warps - 1"),
]


@pytest.mark.parametrize("fault", [*SORTING, *ADDING])
def test_a_planted_fault_is_seen(fault: tuple[str, str]) -> None:
    def run(k: Kernels) -> None:
        if fault in SORTING:  # keys that are wrong may lead anywhere: they are not used
            check_sorted(8192)
            return
        for m, n, skew in [(70, 3, False), (2049, 40, True)]:
            index, g = positions(m, n, m, skew), abs(normal((m, 5), "float32"))
            truth = added(g, index, 0, (n, 5))
            check(k, "index_select_backward", g, index, 0, (n, 5), truth=truth)

    sees(fault, run)
