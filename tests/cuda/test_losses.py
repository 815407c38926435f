"""Losses where the common table does not reach: several blocks, long rows, many labels, labels out
of range, 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels import reference
from tinygrad_ish.kernels.gpu import losses

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

REDUCTIONS = reference.REDUCTIONS
LABELLED = ("softmax_cross_entropy", "nll_loss")
# (rows, classes): one block, several blocks that are not full, a block for each row
SHAPES = [(5, 3), (1500, 10), (66, 70), (19, 1000), (3, 1100), (1, 2000)]


def labelled(shape: tuple[int, int], dtype: str, seed: int = 0) -> tuple[Any, Any, Any]:
    """Logits, labels of which some are left out, and weights of the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, shape[1], shape[0])
    labels[1::7] = -100
    return normal(shape, dtype, seed), labels, rng.uniform(0.5, 2, shape[1]).astype(as_dtype(dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_labelled_rows(kernels: Kernels, dtype: str, reduction: str) -> None:
    for shape in SHAPES:
        x, labels, weight = labelled(shape, dtype)
        for name in LABELLED:
            for w in (None, weight):
                check(kernels, name, x, labels, w, reduction=reduction)
        check(kernels, LABELLED[0], x, labels, reduction=reduction, offset=1)
    alone = {"cross_entropy_lanes", "cross_entropy_block", "nll_rows"}
    sums = {"mean": {"label_weights", "total"}, "sum": {"total"}, "none": set()}
    assert kernels.used == alone | sums[reduction]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_smoothed_labels(kernels: Kernels, dtype: str, reduction: str) -> None:
    for shape in [(9, 3), (5, 100), (2, 1100)]:
        x, labels, weight = labelled(shape, dtype)
        for smoothing in (0.1, 1.0):
            check(
                kernels, LABELLED[0], x, labels, weight, label_smoothing=smoothing,
                reduction=reduction,
            )  # fmt: skip
        check(kernels, LABELLED[0], x, labels, label_smoothing=0.2, reduction=reduction, offset=1)
    assert "cross_entropy_smoothed" in kernels.used


def test_a_row_beyond_the_registers(kernels: Kernels) -> None:
    for columns in (9000, 9001):
        x, labels, weight = labelled((1, columns), "float64")
        labels[0] = columns - 1
        check(kernels, LABELLED[0], 3 * x, labels, weight)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_large_vocabulary(dtype: str) -> None:
    x = normal((2, 50_257), dtype)
    with kernels_on(Device("shuffled")) as k:
        check(k, LABELLED[0], x, np.array([50_256, 0]))


def test_many_labels(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose weights are added up in more parts than a warp has lanes."""
    monkeypatch.setattr(losses, "LABELS", 32)
    for n in (1999, 2048, 4001):
        x, labels, weight = labelled((n, 2), "float32")
        for name in LABELLED:
            check(kernels, name, x, abs(labels) % 2, weight, 1)


@pytest.mark.parametrize("label", [-1, 7, -(2**40), 2**40])
@pytest.mark.parametrize("n", [3, 5000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_out_of_range(label: int, n: int, smoothing: float) -> None:
    """A NaN loss; without "mean" the other rows are as they were."""
    x, labels, _ = labelled((n, 7), "float32")
    labels[:3] = 2, label, -100
    with kernels_on(Device()) as k:
        for name in LABELLED:
            options = {"label_smoothing": smoothing} if name == LABELLED[0] else {}
            if smoothing and n > 3:
                continue
            loss, dx = getattr(k, name)(x, labels, **options)
            assert np.isnan(loss) and np.isnan(dx[0]).all() and not dx[2].any()
            assert np.isnan(getattr(k, name)(x, labels, reduction="sum", **options)[0])
            loss, dx = getattr(k, name)(x, labels, reduction="none", **options)
            assert np.isnan(loss[1]) and np.isfinite(np.delete(loss, 1)).all()
            assert np.isnan(dx[1]).any() and np.isfinite(np.delete(dx, 1, axis=0)).all()


def test_all_labels_left_out(kernels: Kernels) -> None:
    for n in (3, 3000):
        labels = np.full(n, 1)
        for name in LABELLED:
            x = normal((n, 4), "float32")
            x[0] = np.inf
            loss, dx = getattr(kernels, name)(x, labels, None, 1)
            assert np.isnan(loss) and not dx.any()
            check(kernels, name, x, labels, None, 1, reduction="sum")


@pytest.mark.parametrize("columns", [10, 1000, 1100])
def test_infinite_logits(kernels: Kernels, columns: int) -> None:
    x, labels, _ = labelled((4, columns), "float32")
    x[0, : columns - 2], x[1], x[2, 0], x[3, 1:] = -np.inf, -np.inf, np.inf, -np.inf
    labels[:] = columns - 1, 0, 1, 1
    loss = check(kernels, LABELLED[0], x, labels, reduction="none")
    assert np.isfinite(loss[0]) and np.isnan(loss[1:3]).all() and loss[3] == np.inf


@settings(max_examples=40)
@given(
    st.integers(1, 60), st.integers(1, 1100), st.sampled_from(DTYPES), st.integers(0, 3),
    st.sampled_from(REDUCTIONS), st.sampled_from([0.0, 0.1]), st.sampled_from(sorted(shim.ORDERS)),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_labelled_rows(
    n: int, c: int, dtype: str, offset: int, reduction: str, smoothing: float, order: str, seed: int
) -> None:
    x, labels, weight = labelled((min(n, 1 + 3000 // c), c), dtype, seed)
    options = {"offset": offset, "reduction": reduction}
    with kernels_on(Device(order)) as k:
        check(k, LABELLED[0], x, labels, weight, -100, smoothing, **options)
        check(k, LABELLED[1], x, labels, weight, **options)


ELEMENTWISE = {
    "mse_loss": lambda shape, dtype: (normal(shape, dtype), normal(shape, dtype, 1)),
    "bce_loss": lambda shape, dtype: shares(shape, dtype, (1, 2)),
    "bce_with_logits": lambda shape, dtype: (normal(shape, dtype), *shares(shape, dtype, (1,))),
}


def shares(shape: Any, dtype: str, seeds: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Numbers between 0 and 1."""
    made = [np.random.default_rng(s).uniform(0.05, 0.95, shape) for s in seeds]
    return tuple([np.asarray(x).astype(as_dtype(dtype)) for x in made])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements(kernels: Kernels, dtype: str, reduction: str) -> None:
    for shape in [(), (3, 5), (33, 31), (2 * losses.CHUNK + 13,)]:
        for name, make in ELEMENTWISE.items():
            check(kernels, name, *make(shape, dtype), reduction=reduction)
    assert ("total" in kernels.used) == (reduction != "none")
    w, q = (abs(normal(s, dtype, 3)) for s in [(33, 1), (31,)])
    for offset in (0, 1):
        options: dict[str, Any] = {"reduction": reduction, "offset": offset}
        x, t = ELEMENTWISE["bce_with_logits"]((33, 31), dtype)
        check(kernels, "bce_with_logits", x, t, w, q, **options)
        check(kernels, "bce_with_logits", x, t, None, q, **options)
        check(kernels, "bce_loss", *ELEMENTWISE["bce_loss"]((33, 31), dtype), w, **options)


def test_more_elements_than_blocks(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MOST_BLOCKS", 3)
    for name, make in ELEMENTWISE.items():
        check(kernels, name, *make(5 * losses.CHUNK + 3, "float32"))


def test_the_sum_of_many_blocks(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", 2)
    monkeypatch.setattr(losses, "THREADS", 32)
    for n in (500, 2 * losses.MOST_BLOCKS):
        check(kernels, "mse_loss", *ELEMENTWISE["mse_loss"](n, "float64"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probabilities_out_of_range(dtype: str) -> None:
    x = np.array([0.5, 1.5, -0.1, np.nan, 0.0, 1.0]).astype(as_dtype(dtype))
    t = np.zeros(6).astype(as_dtype(dtype))
    with kernels_on(Device()) as k:
        loss, dx = (wide(r) for r in k.bce_loss(x, t, reduction="none"))
        assert np.isnan(loss).tolist() == [False, True, True, True, False, False]
        assert np.flatnonzero(np.isnan(dx)).tolist() == [3] and loss[5] == 100 and dx[4] == 0
        assert np.isnan(wide(k.bce_loss(x, t)[0]))


def cross_entropy(shape: tuple[int, int], **options: Any) -> Any:
    x, labels, weight = labelled(shape, "float32")
    return lambda k: check(k, "softmax_cross_entropy", x, labels, weight, **options)


def elements(name: str, n: int) -> Any:
    return lambda k: check(k, name, *ELEMENTWISE[name](n, "float32"))


PUT = "    if (lane == 0) scratch[warp] = x;\n"
FAULTS = {
    "a missing barrier": ((f"{PUT}    __syncthreads();\n", PUT), cross_entropy((3, 1100))),
    "a row too few": (("row < n); row +=", "row < n - 1); row +="), cross_entropy((3, 1000))),
    "no divisor": (("share / (e.total * divisor)", "share / e.total"), cross_entropy((5, 10))),
    "another owner": (("% size == rank", "% size == 0"), cross_entropy((5, 40))),
    "a part too few": (("lane < count ?", "lane + 1 < count ?"), cross_entropy((1500, 10))),
    "the label's weight twice": (("i == label ? hard", "i == label ? 2 * hard"),
                                 cross_entropy((1, 10), label_smoothing=0.1)),
    "the end as numbers": (("if (j < left) terms", "terms"), elements("bce_with_logits", 5)),
    "a block too few": (("i < n; i += blockDim.x) sum", "i + 1 < n; i += blockDim.x) sum"),
                        elements("mse_loss", 9000)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str) -> None:
    sees(*FAULTS[fault])
