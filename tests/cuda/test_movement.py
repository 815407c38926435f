"""Casts of every dtype to every other, and copies of every layout."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.kernels.gpu.movement import KINDS

from . import shim
from .checks import Device, Kernels, as_dtype, kernels_on, sees
from .test_kernels import Watched

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

VALUES = [0, 1, 2, 3, 63, 100, 127, -1, -100, 1.5, -2.75, 0.001]


def numbers(dtype: str, n: int) -> np.ndarray:
    """Numbers that fit every dtype but for their sign and fraction."""
    kind = as_dtype(dtype)
    signed = kind.kind not in "ub"
    return np.array(
        [v if signed else abs(v) for v in itertools.islice(itertools.cycle(VALUES), n)]
    ).astype(kind)


def cast_exactly(k: Kernels, a: str, b: str, n: int, offset: int) -> None:
    watched = Watched()
    x = watched.array(numbers(a, n), offset)
    expected = (
        x.astype(np.float32).astype(as_dtype(b))
        if "16" in b and "f" in b
        else x.astype(as_dtype(b))
    )
    assert k.cast(x, as_dtype(b)).tobytes() == expected.tobytes(), f"{a} to {b}"
    out = watched.array(np.full(n, 99).astype(as_dtype(b)), offset)
    assert k.cast(x, as_dtype(b), out=out) is out
    assert out.tobytes() == expected.tobytes()
    watched.check(f"{a} to {b}")


@pytest.mark.parametrize("b", KINDS)
def test_every_cast(kernels: Kernels, b: str) -> None:
    for a in KINDS:
        for n, offset in [(1, 0), (37, 0), (37, 1)]:
            cast_exactly(kernels, a, b, n, offset)
    assert kernels.used == {"cast"}


def test_casts_of_what_is_no_number(kernels: Kernels) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 70_000], "float32")
    np.testing.assert_array_equal(kernels.cast(x, np.float64), x.astype(np.float64))
    np.testing.assert_array_equal(kernels.cast(x, bool), [True, True, True, False, True, True])
    half = kernels.cast(x, "float16")
    np.testing.assert_array_equal(
        half, np.array([np.nan, np.inf, -np.inf, 0, 0, np.inf], "float16")
    )
    brain = kernels.cast(x, as_dtype("bfloat16")).astype(np.float64)
    np.testing.assert_array_equal(brain[:4], x[:4])
    assert kernels.cast(np.arange(4)[::2], "float32").tolist() == [0, 2]  # strided: the reference's
    x = x[:3]
    assert kernels.cast(x, "float32", out=x) is x


def test_many_blocks(kernels: Kernels) -> None:
    cast_exactly(kernels, "uint8", "float32", 2 * 8 * 256 * 4 * 2 + 5, 0)
    x = np.arange(70 * 301 * 3).reshape(70, 301, 3)[:, ::2, ::2]
    assert kernels.copy(x).tobytes() == x.tobytes()
    assert kernels.used == {"cast", "copy_strided"}


# --- copies ----------------------------------------------------------------------------------

CARRIED = ("float32", "float64", "float16", "bfloat16", "int64", "int32")


@st.composite
def views(draw: st.DrawFn) -> Any:
    """A function from an array's dtype to a view of some memory: permuted, sliced, broadcast."""
    ndim = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 9)) for _ in range(ndim)]
    order = draw(st.permutations(range(ndim)))
    slices = []
    for n in shape:
        step = draw(st.sampled_from([1, 1, 2, -1, -2]))
        slices.append(slice(None, None, step) if n > 1 else slice(None))
    wide = draw(st.sampled_from([None, None, 3]))

    def view(dtype: Any) -> np.ndarray:
        memory = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
        x = memory[tuple(slices)].transpose(order)
        return x if wide is None else np.broadcast_to(x, (wide, *x.shape))

    return view


@settings(max_examples=150)
@given(views(), st.sampled_from(CARRIED), st.sampled_from(list(shim.ORDERS)), st.integers(0, 1))
def test_a_copy_of_any_view(view: Any, dtype: str, order: str, offset: int) -> None:
    x, watched = view(as_dtype(dtype)), Watched()
    with kernels_on(Device(order)) as k:
        y = k.copy(x)
        assert y.flags.c_contiguous and y.tobytes() == x.tobytes()
        out = watched.array(np.full(x.shape, 99).astype(x.dtype), offset)
        assert k.copy(x, out=out) is out
    assert out.tobytes() == x.tobytes()
    watched.check("copy")


def counted(dtype: Any, *shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


LAYOUTS = {  # a view, and the kernels that copy it
    "a matrix": (lambda d: counted(d, 70, 45).T, {"transpose"}),
    "matrices": (lambda d: counted(d, 3, 33, 64).transpose(0, 2, 1), {"transpose"}),
    "heads": (lambda d: counted(d, 2, 5, 3, 16).transpose(0, 2, 1, 3), {"copy_strided"}),
    "a slice": (lambda d: counted(d, 40, 40)[3:20, 8:24], {"copy_strided"}),
    "every other": (lambda d: counted(d, 2000)[::2], {"copy_strided"}),
    "backwards": (lambda d: counted(d, 2000)[::-1], {"copy_strided"}),
    "four": (lambda d: counted(d, 6, 6, 6, 6)[::2, 1:, ::-1, ::5], {"copy_strided"}),
    "five": (lambda d: counted(d, 4, 4, 4, 4, 4)[::3, ::3, ::3, ::3, ::3], set()),
    "one": (lambda d: counted(d, 6)[3:4], set()),
    "nothing": (lambda d: np.zeros((0, 3), d)[:, ::2], set()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", CARRIED)
def test_a_copy_by_its_kernel(kernels: Kernels, layout: str, dtype: str) -> None:
    make, expected = LAYOUTS[layout]
    x = make(as_dtype(dtype))
    assert kernels.copy(x).tobytes() == x.tobytes()
    assert kernels.used == expected


def test_a_copy_into_what_overlaps(kernels: Kernels) -> None:
    x = np.arange(10.0)
    kernels.copy(x[:8], out=x[2:])
    assert x.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]
    wide = np.zeros((2, 3))
    assert kernels.copy(np.arange(3.0), out=wide) is wide and wide.tolist() == [[0, 1, 2]] * 2
    with pytest.raises(ValueError, match="cast x first"):
        kernels.copy(np.ones(3, "float32"), out=np.ones(3))
    assert not kernels.used


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 2))
def test_joined(sizes: list[int], axis: int) -> None:
    def part(i: int, n: int) -> np.ndarray:
        shape = [2, 3, 2]
        shape[axis] = n
        return np.full(shape, i, "float32")

    arrays = tuple(part(i, n) for i, n in enumerate(sizes))
    expected = np.concatenate(arrays, axis)
    with kernels_on(Device()) as k:
        assert k.cat(arrays, axis).tobytes() == expected.tobytes()
        out = np.full(expected.shape, np.nan, "float32")
        assert k.cat(arrays, axis, out=out) is out and out.tobytes() == expected.tobytes()
        with pytest.raises(ValueError, match="out: expected"):
            k.cat(arrays, axis, out=np.zeros((1, 1), "float32"))


def test_what_does_not_join(kernels: Kernels) -> None:
    one, two = np.ones(2), np.ones((2, 3))
    for arrays, axis in [
        ((two, two.T), 0),
        ((one, two), 0),
        ((one, one), 1),
        ((one[0], one[0]), 0),
    ]:
        with pytest.raises(ValueError, match=r"dimension|axis"):
            kernels.cat(tuple(map(np.asarray, arrays)), axis)


@pytest.mark.parametrize(
    "fault",
    [
        ("__syncthreads();", ""),
        ("digits[k] += steps[k] + carry", "digits[k] += steps[k]"),
        ("n * apart + ", ""),
        ("row + k < rows && column + side < columns", "row + k < rows"),
    ],
)
def test_a_planted_fault_is_seen(fault: tuple[str, str]) -> None:
    def run(k: Kernels) -> None:
        many = np.arange(70 * 301 * 3.0).reshape(70, 301, 3)[:, ::2, ::2]
        for x in (many, *[make("float64") for make, _ in LAYOUTS.values()]):
            watched = Watched()
            out = watched.array(np.zeros(x.shape))
            assert k.copy(x, out=out).tobytes() == x.tobytes()
            watched.check("copy")

    sees(fault, run)
