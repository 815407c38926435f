"""Optimizer steps, clipping and loss scaling on the shim, where the common table does not reach:
many blocks, many arrays, every alignment, 16 bits. And the faults that these tests must find."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.kernels import Backend, get_backend, gpu, reference
from tinygrad_ish.kernels.gpu import _nvrtc

from . import shim
from .test_kernels import Watched

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

ADAM = (0.9, 0.999, 1e-8, 0.01, True)
SGD = (0.9, 0.5, 0.01, True)
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-14}


@pytest.fixture(params=shim.TESTED)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with shim.in_place_of_a_gpu(request.param):
        yield Backend("shim", "cpu", "numpy", gpu.__name__)


def dtype_named(name: str) -> Any:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def arrays(n: int, dtype: str, offsets: tuple[int, ...]) -> tuple[Watched, list[np.ndarray]]:
    """Arrays of n numbers of 0 … 1, each so many elements behind a multiple of 16 bytes."""
    rng, watched = np.random.default_rng(n), Watched()
    kind = dtype_named(dtype)
    return watched, [watched.array(rng.uniform(0, 1, n).astype(kind), at) for at in offsets]


def stepped(
    k: Any, name: str, n: int, dtype: str, offsets: tuple[int, ...], found_inf: Any = None
) -> list[np.ndarray]:
    """What a step leaves in its arrays, in float64."""
    watched, given = arrays(n, dtype, offsets)
    flag = None if found_inf is None else np.array(found_inf)
    options = ADAM if name == "adam_step" else SGD
    getattr(k, name)(*given, np.array([1e-2, 7.0]), *options, flag)
    watched.check(name)
    return [x.astype(np.float64) for x in given]


def check(k: Any, name: str, n: int, dtype: str, offsets: tuple[int, ...]) -> None:
    got = stepped(k, name, n, dtype, offsets)
    expected = stepped(get_backend("numpy"), name, n, dtype, offsets)
    for a, b in zip(got, expected, strict=True):
        tol = TOLERANCE[dtype]
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol, err_msg=f"{name} {n} {dtype}")


STEPS = [("adam_step", 4), ("sgd_step", 3)]


@pytest.mark.parametrize("name, count", STEPS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_step_over_many_blocks(backend: Backend, name: str, count: int, dtype: str) -> None:
    check(backend, name, 40_003, dtype, (0,) * count)


@pytest.mark.parametrize("name, count", STEPS)
def test_a_step_at_every_alignment(backend: Backend, name: str, count: int) -> None:
    for offset in range(4):
        for n in (1, 3, 4, 5, 1027):
            check(backend, name, n, "float32", (offset,) * count)
    check(backend, name, 1027, "float32", (0, 1, 2, 3)[:count])
    check(backend, name, 1027, "float16", (5,) * count)


def test_the_bits_do_not_follow_the_alignment(backend: Backend) -> None:
    for name, count in STEPS:
        for dtype in TOLERANCE:
            one = stepped(backend, name, 1027, dtype, (0,) * count)
            for offsets in [(1,) * count, (0, 1, 2, 3)[:count]]:
                for a, b in zip(one, stepped(backend, name, 1027, dtype, offsets), strict=True):
                    assert a.tobytes() == b.tobytes(), f"{name} {dtype} {offsets}"


@pytest.mark.parametrize("name, count", STEPS)
def test_an_overflow_leaves_everything_as_it_was(backend: Backend, name: str, count: int) -> None:
    offsets = (0,) * count
    before = [x.astype(np.float64) for x in arrays(1000, "float32", offsets)[1]]
    after = stepped(backend, name, 1000, "float32", offsets, found_inf=1.0)
    assert all((a == b).all() for a, b in zip(after, before, strict=True))
    moved = stepped(backend, name, 1000, "float32", offsets, found_inf=0.0)
    assert not (moved[0] == before[0]).any()


def test_what_the_kernels_do_not_take_the_reference_does(backend: Backend) -> None:
    p, g, m, v = (np.ones(8)[::2] for _ in range(4))
    backend.adam_step(p, g, m, v, np.array([0.5, 1.0]), 0.9, 0.999, 1e-8, 0.0)
    assert (p < 1).all()
    k, two = get_backend("numpy"), (np.ones(3, "float32"), np.ones(4))
    assert backend.grad_norm(two, 2.0) == k.grad_norm(two, 2.0)
    found = np.array(np.nan)
    backend.unscale_step(two, np.array([4.0, 0.0]), found)
    assert (two[0] == 0.25).all() and (two[1] == 0.25).all() and found == 0


# --- clipping and loss scaling ----------------------------------------------------------------

SIZES = [3, 8192, 0, 8193, 1, 20_000, 5, 16_384, 77, 8191, 2, 40_000]  # of arrays: two launches


def gradients(dtype: str, offset: int = 0) -> tuple[Watched, tuple[np.ndarray, ...]]:
    rng, watched, kind = np.random.default_rng(1), Watched(), dtype_named(dtype)
    return watched, tuple(
        watched.array((rng.normal(size=n) / 8).astype(kind), offset) for n in SIZES
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, np.inf])
def test_the_norm_of_many_arrays(backend: Backend, p: float, dtype: str) -> None:
    _, given = gradients(dtype)
    together = np.concatenate([x.astype(np.float64) for x in given])
    expected = np.linalg.norm(together, p)
    got = backend.grad_norm(given, p)
    assert got.dtype == given[0].dtype
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=TOLERANCE[dtype])
    assert backend.grad_norm(gradients(dtype, 1)[1], p).tobytes() == got.tobytes()
    given[-1][39_999] = np.nan
    assert np.isnan(backend.grad_norm(given, p).astype(np.float64))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_unscaling_many_arrays(backend: Backend, dtype: str) -> None:
    state, found = np.array([3.0, 0.0]), np.array(np.nan)
    for offset in (0, 1):
        watched, given = gradients(dtype, offset)
        factor = np.float64(1 / 3).astype(given[0].dtype).astype(np.float64)
        expected = [x.astype(np.float64) * factor for x in given]
        backend.unscale_step(given, state, found)
        watched.check("unscale_step")
        assert found == 0
        for a, b in zip(given, expected, strict=True):
            tol = TOLERANCE[dtype]
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=tol, atol=tol)
        for which, place in [(0, 2), (5, 19_999), (11, 0)]:
            given[which][place] = -np.inf
            backend.unscale_step(given, state, found)
            assert found == 1
            given[which][place] = 1


# --- planted faults ---------------------------------------------------------------------------


@contextlib.contextmanager
def planted(file: str, right: str, wrong: str) -> Iterator[Backend]:
    """The backend with a fault in one of its sources."""
    text = _nvrtc.source(file)
    assert right in text

    class Faulty(shim.ShimDevice):
        def load(self, loaded: str, dtype: str, name: str, shared: int = 0) -> Any:
            assert loaded == file
            return self.kernel(shim.build(text.replace(right, wrong), dtype), name)

    with shim.in_place_of_a_gpu():
        shim.use(Faulty())
        yield Backend("shim", "cpu", "numpy", gpu.__name__)


Check = Callable[[Backend], None]
FAULTS: dict[str, tuple[str, str, str, Check]] = {
    "a barrier": (
        "optimizers", "__syncthreads();", "",
        lambda k: check(k, "adam_step", 999, "float32", (0,) * 4),
    ),
    "a tail": (
        "optimizers", "n - packs * PACK", "n - packs * PACK - 1",
        lambda k: check(k, "sgd_step", 1027, "float32", (0,) * 3),
    ),
    "a head": (
        "optimizers", "i < head ? i : i + packs * PACK", "i + packs * PACK",
        lambda k: check(k, "adam_step", 1027, "float32", (1,) * 4),
    ),
    "an overflow": (
        "optimizers", "*found_inf != 0", "*found_inf == 2",
        lambda k: test_an_overflow_leaves_everything_as_it_was(k, "sgd_step", 3),
    ),
    "a chunk": (
        "clipping", "b -= chunks(n), x", "b -= n / CHUNK, x",
        lambda k: test_the_norm_of_many_arrays(k, 2.0, "float32"),
    ),
    "an end": (
        "clipping", "k < PACK && i + k < end", "k < PACK",
        lambda k: test_unscaling_many_arrays(k, "float32"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str) -> None:
    file, right, wrong, run = FAULTS[fault]
    with shim.in_place_of_a_gpu():
        run(Backend("shim", "cpu", "numpy", gpu.__name__))
    with planted(file, right, wrong) as k, pytest.raises(AssertionError):
        run(k)


def test_tiny_numbers_count_as_nothing(backend: Backend) -> None:
    for dtype in ("float32", "float64"):
        least = reference.tiny(dtype)
        p, g, m, v = (np.full(5, x, dtype) for x in (1.0, 0.0, least * 1.05, least * 1.0005))
        backend.adam_step(p, g, m, v, np.array([1e-3, 5.0]), 0.9, 0.999, 1e-8, 0.0)
        assert not m.any() and not v.any() and (p == 1).all()
