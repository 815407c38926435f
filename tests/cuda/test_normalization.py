"""Layer norm where the common table does not reach: rows for lanes, for a block and beyond the
registers, many rows, 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels import reference
from tinygrad_ish.kernels.gpu import normalization

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

SHORT = [(300, 3), (65, 16), (18, 70), (9, 200), (3, 768), (2, 1024)]
LONG = [(2, 1032), (2, 1501)]
NEEDS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]


def affine(d: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return normal(d, dtype, 1), normal(d, dtype, 2)


def for_backward(n: int, d: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, ...]:
    """g, x, μ, r and the weight."""
    g, x, mean, rstd, weight = (
        normal(shape, dtype, seed + i)
        for i, shape in enumerate([(n, d), (n, d), n, n, d])
    )  # fmt: skip
    return g, x, mean, abs(rstd) + as_dtype(dtype).type(0.5), weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(kernels: Kernels, dtype: str) -> None:
    for n, d in [*SHORT, *LONG]:
        weight, bias = affine(d, dtype)
        x = normal((n, d), dtype) * as_dtype(dtype).type(2) + as_dtype(dtype).type(1)
        check(kernels, "layer_norm", x, weight, bias)
        check(kernels, "layer_norm", x, None, bias, 0.1)
        check(kernels, "layer_norm", x, weight, offset=1)
    assert kernels.used == {"layer_norm_lanes", "layer_norm_block"}


def test_a_row_beyond_the_registers(kernels: Kernels) -> None:
    for d in (9000, 9001):
        check(kernels, "layer_norm", normal((1, d), "float64"), *affine(d, "float64"))


def test_the_variance_keeps_its_digits(kernels: Kernels) -> None:
    """Far from 0: Σ x² - (Σ x)² would have none left."""
    for d in (100, 1500):
        x = np.float32(1e4) + np.arange(d, dtype="float32") % 7
        y, _, rstd = kernels.layer_norm(np.stack([x, x[::-1]]))
        y_, _, rstd_ = reference.layer_norm(np.stack([x, x[::-1]]).astype("float64"))
        np.testing.assert_allclose(y, y_, atol=5e-4)  # half a digit of the mean
        np.testing.assert_allclose(rstd, rstd_, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(kernels: Kernels, dtype: str) -> None:
    for n, d in [*SHORT, *LONG]:
        check(kernels, "layer_norm_backward", *for_backward(n, d, dtype))
    for n, d in [(65, 16), (20, 70), (3, 1032)]:
        check(kernels, "layer_norm_backward", *for_backward(n, d, dtype)[:4], offset=1)
    for n, d in [(20, 70), (3, 300)]:
        for needs in NEEDS:
            check(kernels, "layer_norm_backward", *for_backward(n, d, dtype), needs=needs)
    by_rows = {"layer_norm_backward_lanes", "layer_norm_backward_block"}
    assert kernels.used == by_rows | {"column_sums"}


@pytest.mark.parametrize("chunks", [1, 2, 40])
def test_many_rows(kernels: Kernels, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than the blocks take in one turn, more blocks than ``column_sums`` has warps."""
    monkeypatch.setattr(normalization, "CHUNKS", chunks)
    for n, d in [(700, 40), (1301, 33), (90, 300)]:
        check(kernels, "layer_norm_backward", *for_backward(n, d, "float32"))


def test_rows_too_long_for_the_sums(kernels: Kernels) -> None:
    """Are the reference's work."""
    check(kernels, "layer_norm_backward", *for_backward(2, 8192, "float32"))
    assert "layer_norm_backward_block" in kernels.used
    kernels.used.clear()
    check(kernels, "layer_norm_backward", *for_backward(2, 8193, "float32"))
    assert not kernels.used


def test_nan_stays_in_its_row(kernels: Kernels) -> None:
    for d in (13, 1500):
        x = normal((5, d), "float32")
        x[1, 3], x[2, 0] = np.nan, np.inf
        y = check(kernels, "layer_norm", x, *affine(d, "float32"))
        assert np.isnan(y[1:3]).all() and np.isfinite(y[[0, 3, 4]]).all()


def test_the_same_bits_on_any_gpu() -> None:
    """Sums go by the shape: not by the number of multiprocessors, nor by the order of blocks."""
    found = []
    for order, size in [("forward", 2), ("reverse", 2), ("shuffled", 132)]:
        device = Device(order)
        device.multiprocessors = size
        with kernels_on(device) as k:
            results = k.layer_norm_backward(*for_backward(700, 40, "float32"))
            found.append([r.tobytes() for r in results])
    assert found[0] == found[1] == found[2]


@settings(max_examples=40)
@given(
    st.integers(1, 60), st.integers(1, 1100), st.sampled_from(DTYPES), st.integers(0, 3),
    st.sampled_from(sorted(shim.ORDERS)), st.sampled_from(NEEDS), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(
    n: int, d: int, dtype: str, offset: int, order: str, needs: Any, seed: int
) -> None:
    args = for_backward(min(n, 1 + 3000 // d), d, dtype, seed)
    with kernels_on(Device(order)) as k:
        check(k, "layer_norm", args[1], args[4], 1 - args[4], 0.01, offset=offset)
        check(k, "layer_norm_backward", *args, offset=offset, needs=needs)


def forward(n: int, d: int) -> Any:
    x, (weight, bias) = normal((n, d), "float32"), affine(d, "float32")
    return lambda k: check(k, "layer_norm", x, weight, bias)


def backward(n: int, d: int) -> Any:
    return lambda k: check(k, "layer_norm_backward", *for_backward(n, d, "float32"))


PUT = "    if (lane == 0) scratch[warp] = x;\n"
BARRIER = "        __syncthreads();\n"
NEXT = "    }\n    for (int i"
FAULTS = {
    "a missing barrier": ((f"{PUT}    __syncthreads();\n", PUT), forward(2, 1500)),
    "no barrier between warps": ((BARRIER + NEXT, NEXT), backward(64, 10)),
    "the end as zeros": (("< columns.c ? x.v[j]", "> -1 ? x.v[j]"), forward(3, 13)),
    "a row too few": (("first + a.each)", "first + a.each - 1)"), backward(300, 10)),
    "no sum over a warp's teams": (("step >= team.size", "step > team.size"), backward(64, 10)),
    "no barrier for columns": (("= sum;\n    __syncthreads();", "= sum;"), backward(300, 40)),
    "a chunk too few": (("row < n; row += warps", "row < n - 1; row += warps"), backward(9, 300)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str) -> None:
    sees(*FAULTS[fault])
