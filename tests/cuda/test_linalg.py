"""Matrix products through a cuBLAS on the CPU, and the kernels around them on shapes that the
common table does not reach."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tinygrad_ish as tg
from tinygrad_ish.kernels import Backend, get_backend, gpu, reference, why_missing
from tinygrad_ish.kernels.gpu import _blas, _nvrtc, linalg

from . import fake_blas, shim

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

DTYPES = ("float32", "float64", "float16", "bfloat16")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 1e-2, "bfloat16": 1e-2}


@pytest.fixture
def device() -> Iterator[shim.ShimDevice]:
    with shim.in_place_of_a_gpu() as device:
        yield device


k: Any = Backend("shim", "cpu", "numpy", gpu.__name__)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: pip install ml_dtypes")
    return rng.normal(size=shape).astype(fake_blas.dtype_of(dtype))


def near(got: np.ndarray, expected: np.ndarray, dtype: str, scale: float = 1) -> None:
    """``expected`` is the truth in float64."""
    assert (got.shape, got.dtype.name) == (expected.shape, dtype)
    tol = TOLERANCE[dtype]
    np.testing.assert_allclose(got.astype(float), expected, rtol=tol, atol=tol * scale)


def wide(*arrays: np.ndarray) -> Any:
    return [x.astype(float) for x in arrays]


def products() -> list[str]:
    return [name for name in _blas.library.called if "Gemm" in name]


# --- products -----------------------------------------------------------------------------------

LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "a part of the columns": lambda x: np.concatenate([x, x, x], -1)[..., : x.shape[-1]],
    "a part of the rows": lambda x: np.concatenate([x, x], -2)[..., : x.shape[-2], :],
    "every other": lambda x: np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "batch last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0),
    "unaligned": lambda x: np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_a", LAYOUTS)
def test_factors_of_any_layout(device: Any, of_a: str, of_b: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for m, n, inner in [(5, 3, 7), (1, 4, 3), (4, 1, 3), (3, 4, 1), (1, 1, 1), (16, 8, 32)]:
        a = LAYOUTS[of_a](numbers(rng, (2, m, inner), dtype))
        b = LAYOUTS[of_b](numbers(rng, (2, inner, n), dtype))
        near(k.matmul(a, b), np.matmul(*wide(a, b)), dtype, 4)
        near(k.matmul(a[0], b[1]), wide(a[0])[0] @ wide(b[1])[0], dtype, 4)
        near(k.matmul(a, b[0]), np.matmul(*wide(a, b[0])), dtype, 4)


SIDES = st.integers(0, 4)


@settings(max_examples=150)
@given(st.data())
def test_products_of_any_shapes(data: Any) -> None:
    """Axes in front broadcast, are permuted, expanded and cut, and may be empty."""
    lead = data.draw(st.lists(SIDES, max_size=3))
    m, n, inner = (data.draw(SIDES) for _ in range(3))

    def factor(*shape: int) -> np.ndarray:
        own = [data.draw(st.sampled_from([s, 1])) for s in lead]
        own = own[data.draw(st.integers(0, len(own))) :]
        full = [*own, *shape]
        order = data.draw(st.permutations(range(len(full))))
        made = rng.normal(size=[full[i] * 2 for i in order]).astype(np.float32)
        steps = [data.draw(st.sampled_from([1, 2, -2])) for _ in order]
        cut = made[tuple(slice(None, None, s) for s in steps)]
        cut = cut[tuple(slice(full[i]) for i in order)]
        return cut.transpose(np.argsort(order))

    rng = np.random.default_rng(0)
    a, b = factor(m, inner), factor(inner, n)
    with shim.in_place_of_a_gpu():
        got = k.matmul(a, b)
        near(got, np.matmul(*wide(a, b)), "float32", 4)
        out = np.full(got.shape, np.nan, np.float32)
        assert k.matmul(a, b, out=out) is out and out.tobytes() == got.tobytes()


VECTORS = [
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((4, 2, 3), (3,)), ((3,), (4, 3, 2)),
    ((0,), (0,)), ((0,), (0, 2)),
]  # fmt: skip


@pytest.mark.parametrize("a, b", VECTORS)
def test_vectors(device: Any, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = numbers(rng, a, "float32"), numbers(rng, b, "float32")
    near(k.matmul(x, y), np.asarray(np.matmul(*wide(x, y))), "float32")


def test_how_often_cublas_is_called(device: Any) -> None:
    rng = np.random.default_rng(0)

    def calls(a: np.ndarray, b: np.ndarray) -> list[str]:
        _blas.library.called.clear()
        near(k.matmul(a, b), np.matmul(*wide(a, b)), "float32", 4)
        return products()

    one, many = "cublasGemmEx_64", "cublasGemmStridedBatchedEx_64"
    x = numbers(rng, (3, 4, 5, 6), "float32")
    assert calls(x, numbers(rng, (6, 2), "float32")) == [one]  # all rows at once
    assert calls(x, numbers(rng, (3, 4, 6, 2), "float32")) == [many]
    assert calls(x, numbers(rng, (4, 6, 2), "float32")) == [many] * 3
    assert calls(x[:, :1], numbers(rng, (3, 1, 6, 2), "float32")) == [many]
    assert calls(x[:1], numbers(rng, (1, 4, 6, 2), "float32")) == [many]
    # Attention: heads lie side by side, and their axis comes to the front.
    heads = numbers(rng, (2, 7, 3, 6), "float32").transpose(0, 2, 1, 3)
    assert calls(heads, heads.swapaxes(-1, -2)) == [many] * 2
    # Too many calls: copies, which are one batch.
    heads = numbers(rng, (20, 2, 21, 3), "float32").transpose(0, 2, 1, 3)
    assert calls(heads, heads.swapaxes(-1, -2)) == [many]


@pytest.mark.parametrize(
    "a, b", [((2, 3), (4, 2)), ((2, 2, 3), (3, 3, 2)), ((), (3,)), ((3,), (4,))]
)
def test_shapes_that_do_not_fit_are_refused_as_on_the_cpu(device: Any, a: Any, b: Any) -> None:
    x, y = np.ones(a, np.float32), np.ones(b, np.float32)
    with pytest.raises(ValueError) as expected:
        reference.matmul(x, y)
    with pytest.raises(ValueError) as got:
        k.matmul(x, y)
    assert str(got.value) == str(expected.value)


def test_what_cublas_does_not_take_is_the_references(device: Any) -> None:
    a = np.arange(6).reshape(2, 3)
    assert k.matmul(a, a.T).tolist() == (a @ a.T).tolist()
    mixed = k.linear(np.ones((2, 3)), np.ones((4, 3), np.float32))
    assert mixed.dtype == np.float64 and not products()


_no_gpu = why_missing("cupy")


@pytest.mark.gpu
@pytest.mark.skipif(_no_gpu is not None, reason=str(_no_gpu))
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_products_are_captured_in_a_cuda_graph(dtype: str) -> None:
    """And compute on what the arrays hold when it is launched."""
    backend = get_backend("cupy")
    cp, rng = backend.xp, np.random.default_rng(0)
    x, w, b = (numbers(rng, s, dtype) for s in ((300, 20), (24, 20), (24,)))
    w8 = rng.integers(-128, 128, (24, 20), np.int8)
    scale = np.full(24, 1e-2, reference.wider(x.dtype))
    on_gpu = [backend.asarray(a) for a in (x, w, b, w8, scale)]

    def work(k: Any, x: Any, w: Any, b: Any, w8: Any, scale: Any) -> list[Any]:
        y = k.linear(x, w, b, "relu")
        batch = k.matmul(x.reshape(3, 100, 20), w[:4].T)
        answers = [k.linear_int8(x[:5], w8, scale, b), k.linear_int8(x, w8, scale, b)]
        return [y, batch, *k.linear_backward(y, x, w, y, "relu"), *answers]

    pool, stream = cp.cuda.MemoryPool(), cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream, cp.cuda.using_allocator(pool.malloc):
        work(backend, *on_gpu)
        stream.synchronize()
        stream.begin_capture()
        results = work(backend, *on_gpu)
        graph = stream.end_capture()
        for _ in range(2):
            x = numbers(rng, x.shape, dtype)
            on_gpu[0].set(x)
            graph.launch()
            stream.synchronize()
            expected = work(reference, *wide(x, w, b), w8, scale.astype(float))
            for got, e in zip(results, expected, strict=True):
                near(backend.to_numpy(got), e, dtype, np.abs(e).max())


# --- precision ----------------------------------------------------------------------------------


def test_the_precision_of_float32(device: Any) -> None:
    assert tg.get_float32_matmul_precision() == "highest"
    rng = np.random.default_rng(0)
    x, w = numbers(rng, (9, 50), "float32"), numbers(rng, (8, 50), "float32")
    x64, w64 = wide(x, w)
    exact, exact64 = k.linear(x, w), k.linear(x64, w64)
    near(exact, x64 @ w64.T, "float32", 4)
    try:
        for name in ("high", "medium"):
            tg.set_float32_matmul_precision(name)
            assert tg.get_float32_matmul_precision() == name
            error = np.abs(k.linear(x, w) - x64 @ w64.T).max()
            assert 1e-4 < error < 1e-2
            assert k.linear(x64, w64).tobytes() == exact64.tobytes()
    finally:
        tg.set_float32_matmul_precision("highest")
    assert k.linear(x, w).tobytes() == exact.tobytes()


def test_a_compiled_function_is_recorded_for_each_precision() -> None:
    """A CUDA graph keeps the one that it was captured with."""
    step, x = tg.compile(lambda x: x @ x), tg.ones(2, 2)
    try:
        for name, recordings in (("highest", 1), ("high", 2), ("highest", 2)):
            tg.set_float32_matmul_precision(name)
            step(x)
            assert len(step._replays) == recordings
    finally:
        tg.set_float32_matmul_precision("highest")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of 'highest', 'high', 'medium'; got 'tf32'"):
        tg.set_float32_matmul_precision("tf32")


# --- the handle ---------------------------------------------------------------------------------


def test_a_thread_has_a_handle_and_a_stream_a_workspace(device: Any) -> None:
    a = np.ones((2, 2), np.float32)
    fake = _blas.library
    k.matmul(a, a)
    first = fake.current
    assert fake.called[:4] == [
        "cublasCreate_v2", "cublasSetMathMode", "cublasSetStream_v2", "cublasSetWorkspace_v2",
    ]  # fmt: skip
    own = _blas.handle().workspace
    second = fake_blas.Stream(256)
    for stream in (second, first):
        fake.called.clear()
        fake.current = stream
        k.matmul(a, a)
        k.matmul(a, a)
        assert fake.called == [
            "cublasSetStream_v2",
            "cublasSetWorkspace_v2",
            *["cublasGemmEx_64"] * 2,
        ]
        assert (_blas.handle().workspace is own) == (stream is first)
    fake.called.clear()
    thread = threading.Thread(target=k.matmul, args=(a, a))
    thread.start()
    thread.join()
    assert "cublasCreate_v2" in fake.called
    handle = _blas.handle()
    assert len(handle._workspaces) == 2
    del second
    gc.collect()
    assert len(handle._workspaces) == 1, "a stream that is gone leaves its workspace behind"


def test_the_first_product_is_not_captured(device: Any) -> None:
    a = np.ones((2, 2), np.float32)
    _blas.library.current.capturing = True
    with pytest.raises(_blas.BlasError, match="compute one before the capture begins"):
        k.matmul(a, a)
    _blas.library.current.capturing = False
    k.matmul(a, a)
    _blas.library.current.capturing = True
    k.matmul(a, a)


def test_a_new_stream_at_the_address_of_an_old_one(device: Any) -> None:
    """It gets a workspace of its own, although its address is known."""
    a = np.ones((2, 2), np.float32)
    fake = _blas.library
    k.matmul(a, a)
    for _ in range(3):
        fake.current = fake_blas.Stream(4096)
        gc.collect()
        fake.called.clear()
        k.matmul(a, a)
        assert fake.called[0] == "cublasSetStream_v2"


def test_the_fake_sees_what_cublas_forbids(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.ones((4, 4), np.float32)
    k.matmul(a, a)
    fake, handle = _blas.library, _blas.handle()

    def product(y: np.ndarray, leading: int, count: int) -> None:
        factors = _blas.Factor(a, False, leading), _blas.Factor(a, False, 4)
        _blas._gemm(*factors, y, [0, 0, 0], (count, 0, 0, 0))

    with pytest.raises(_blas.BlasError, match=r"float32 \(4, 4\) · \(4, 4\), 1 times: .*INVALID"):
        product(a.copy(), 3, 1)
    with pytest.raises(fake_blas.BrokenRule, match="overlaps"):
        product(a, 4, 1)
    with pytest.raises(fake_blas.BrokenRule, match="results of a batch overlap"):
        product(a.copy(), 4, 2)
    fake.cublasSetStream_v2(handle.handle, 0)  # takes the workspace away
    with pytest.raises(fake_blas.BrokenRule, match="workspace"):
        k.matmul(a, a)
    handle._stream = lambda: None
    k.matmul(a, a)
    fake.current.ptr = 512  # the same object: cuBLAS's stream is no longer the current one
    with pytest.raises(fake_blas.BrokenRule, match="another stream"):
        k.matmul(a, a)
    raised: list[BaseException] = []
    monkeypatch.setattr(_blas, "handle", lambda: handle)

    def elsewhere() -> None:
        try:
            k.matmul(a, a)
        except fake_blas.BrokenRule as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another thread" in str(raised)
    monkeypatch.setattr(_blas, "compute_type", lambda dtype: _blas.COMPUTE_64F)
    fake.current.ptr = 0
    with pytest.raises(fake_blas.BrokenRule, match="float32 is not computed as 64F"):
        k.matmul(a, a)


def test_the_library_has_every_function() -> None:
    try:
        library = _blas.load()
    except _blas.BlasError as error:
        assert "pip install 'tinygrad_ish[gpu]'" in str(error)
        pytest.skip(str(error))
    lt = _blas.load("cublasLt")
    assert all(hasattr(lt if "Lt" in name else library, name) for name in _blas.ARGUMENTS)


# --- the kernels of linear.cu -------------------------------------------------------------------

# Several chunks of rows, several strips of columns, packs and single numbers.
LONG = [(1500, 8), (300, 7), (129, 300), (2, 1025), (257, 256)]


def backward_args(n: int, d: int, columns: int, dtype: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(n)
    g, x, w, y = (
        numbers(rng, s, dtype) for s in ((n, columns), (n, d), (columns, d), (n, columns))
    )
    return g, x, w, np.maximum(y, 0)


@pytest.mark.parametrize("order", shim.TESTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, columns", LONG)
def test_backward_of_many_rows(n: int, columns: int, dtype: str, order: str) -> None:
    g, x, w, y = backward_args(n, 3, columns, dtype)
    for relu in (True, False):
        gated = np.where(y.astype(float) <= 0, 0, g.astype(float)) if relu else g.astype(float)
        expected = gated @ w.astype(float), gated.T @ x.astype(float), gated.sum(axis=0)
        with shim.in_place_of_a_gpu(order):
            got = k.linear_backward(g, x, w, y, "relu" if relu else None)
        for a, b in zip(got, expected, strict=True):
            near(a, b, dtype, n**0.5)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_only_what_is_needed(device: Any, needs: tuple[bool, bool, bool]) -> None:
    g, x, w, y = backward_args(200, 3, 12, "float32")
    for activation in (None, "relu"):
        got = k.linear_backward(g, x, w, y, activation, needs)
        expected = reference.linear_backward(g, x, w, y, activation, needs)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-3)


def test_sums_depend_on_the_shape_alone() -> None:
    """Not on the GPU's size, the order of blocks or the place in memory."""
    g, x, w, y = backward_args(1500, 2, 8, "float32")
    moved = np.concatenate([g.ravel()[:1], g.ravel()])[1:].reshape(g.shape)
    assert moved.ctypes.data % 16
    found = set()
    for order, size, gradient in itertools.product(shim.ORDERS, (1, 132), (g, moved)):
        with shim.in_place_of_a_gpu(order) as device:
            device.multiprocessors = size
            found.add(k.linear_backward(gradient, x, w, y, "relu")[2].tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, columns", [(1500, 8), (70, 1030), (1, 4096)])
def test_bias_and_relu_of_many_elements(device: Any, n: int, columns: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (numbers(rng, s, dtype) for s in ((n, 2), (columns, 2), (columns,)))
    x64, w64, b64 = wide(x, w, b)
    near(k.linear(x, w, b, "relu"), np.maximum(x64 @ w64.T + b64, 0), dtype, 4)
    near(k.linear(x, w, b), x64 @ w64.T + b64, dtype, 4)
    near(k.linear(x, w, None, "relu"), np.maximum(x64 @ w64.T, 0), dtype, 4)


def test_nan_passes_relu_and_its_gate(device: Any) -> None:
    x, w = np.array([[np.nan], [1.0], [-1.0]], np.float32), np.ones((5, 1), np.float32)
    y = k.linear(x, w, None, "relu")
    np.testing.assert_array_equal(y, x * [[1], [1], [0]] + np.zeros(5))
    dx, _, db = k.linear_backward(np.ones_like(y), x, w, y, "relu")
    assert dx.ravel().tolist() == [5, 5, 0] and db.tolist() == [2] * 5


# --- cuBLASLt -----------------------------------------------------------------------------------


@pytest.fixture
def in_cublaslt(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "EPILOGUES_IN_CUBLASLT", True)


def from_16(x: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 16 bytes."""
    room = np.empty(x.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, d, columns", [(5, 7, 3), (1, 8, 16), (16, 1, 4), (3, 4, 1)])
def test_an_epilogue_of_cublaslt(
    in_cublaslt: None, n: int, d: int, columns: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (from_16(numbers(rng, s, dtype)) for s in ((n, d), (columns, d), (columns,)))
    out = from_16(np.zeros((n, columns), x.dtype))
    called = _blas.library.called
    for flipped in (x, from_16(x.T).T):
        expected = x.astype(float) @ w.astype(float).T + b.astype(float)
        for _ in range(2):
            called.clear()
            near(k.linear(flipped, w, b, None, out), expected, dtype, 4)
            near(k.linear(flipped, w, b, "relu", out), np.maximum(expected, 0), dtype, 4)
        # Known by now, and in float64, which it has not got here, the other way.
        other = "cublasGemmEx_64" if dtype == "float64" else "cublasLtMatmul"
        assert [c for c in called if "Set" not in c] == [other] * 2


def test_cublaslt_is_left_out_where_it_cannot_be(in_cublaslt: None) -> None:
    x, w, b = (from_16(np.ones(s, np.float32)) for s in ((4, 4), (4, 4), (4,)))
    unaligned = np.concatenate([b, b])[1:5]
    k.linear(x, w, unaligned, None, from_16(x))
    k.linear(x[:0], w, b)
    assert not any("Lt" in c for c in _blas.library.called)
    _blas.library.current.capturing = True  # nothing new is searched for ...
    k.linear(x, w, b, None, from_16(x))
    assert not any("Lt" in c for c in _blas.library.called)
    _blas.library.current.capturing = False
    k.linear(x, w, b, None, from_16(x))
    _blas.library.current.capturing = True  # ... and what is known is used
    _blas.library.called.clear()
    k.linear(x, w, b, None, from_16(x))
    assert "cublasLtMatmul" in _blas.library.called


# --- int8 ---------------------------------------------------------------------------------------


# Several pieces of a row, both numbers of rows in one go, more rows than are read as they are.
INT8_SHAPES = [
    (1, 5000, 3), (3, 2064, 5), (9, 513, 37), (16, 512, 33), (17, 530, 9), (2, 2049, 2),
]  # fmt: skip


def int8_args(n: int, d: int, columns: int, dtype: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(d)
    x, b = numbers(rng, (n, d), dtype), numbers(rng, (columns,), dtype)
    w8 = rng.integers(-128, 128, (columns, d), np.int8)
    return x, w8, rng.uniform(1e-3, 1e-2, columns).astype(reference.wider(x.dtype)), b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, d, columns", INT8_SHAPES)
def test_int8_of_long_rows(device: Any, n: int, d: int, columns: int, dtype: str) -> None:
    x, w8, scale, b = int8_args(n, d, columns, dtype)
    expected = x.astype(float) @ (w8 * scale[:, None].astype(float)).T + b.astype(float)
    size = np.abs(expected).max()
    near(k.linear_int8(x, w8, scale, b), expected, dtype, size)
    near(
        k.linear_int8(x, w8, scale, None, "relu"),
        np.maximum(expected - b.astype(float), 0),
        dtype,
        size,
    )


def test_a_row_of_int8_does_not_depend_on_the_others(device: Any) -> None:
    x, w8, scale, b = int8_args(16, 2500, 6, "float32")
    together = k.linear_int8(x, w8, scale, b, "relu")
    for n in range(1, 16):
        assert k.linear_int8(x[:n], w8, scale, b, "relu").tobytes() == together[:n].tobytes()
    odd = np.concatenate([w8.ravel()[:1], w8.ravel()])[1:].reshape(w8.shape)  # read byte by byte
    assert k.linear_int8(x, odd, scale, b, "relu").tobytes() == together.tobytes()


@pytest.mark.parametrize("backend", [reference, k])
def test_weights_that_are_not_int8_are_refused(device: Any, backend: Any) -> None:
    x, w8, scale, b = int8_args(2, 3, 4, "float32")
    for wrong in [
        (x, w8.astype(np.int16), scale),
        (x, w8, scale.astype(float)),
        (x, w8, scale[:2]),
    ]:
        with pytest.raises(ValueError, match="linear_int8: expected w8 int8"):
            backend.linear_int8(*wrong)
    with pytest.raises(ValueError, match="activation must be None or 'relu', got 'gelu'"):
        backend.linear_int8(x, w8, scale, b, "gelu")


# --- planted faults -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, wrong, right",
    [
        ("linear", "    if (!db) return;", "    if (!db) return;\n    __syncthreads();"),
        ("linear", "i += 31) total += partial", "i += 32) total += partial"),
        ("linear", "end = min(n, start + rows - 1)", "end = min(n, start + rows)"),
        ("int8", "        }\n#pragma unroll\n        for (int q", None),
        ("int8", "start = blockIdx.y * (of.piece - 16)", "start = blockIdx.y * of.piece"),
        ("int8", "", "        __syncthreads();  // whoever reads the chunk before is done\n"),
        ("int8", "- 8388735.0f", "- 8388736.0f"),
    ],
)
def test_a_fault_in_a_kernel_shows(
    monkeypatch: pytest.MonkeyPatch, file: str, wrong: str, right: str | None
) -> None:
    right = right or "            }\n        __syncthreads();\n#pragma unroll\n        for (int q"
    text = _nvrtc.source(file)
    assert text.count(right) == 1, "the kernel was rewritten: plant the fault anew"
    monkeypatch.setattr(_nvrtc, "source", lambda name: text.replace(right, wrong))
    seen = False
    for order in shim.ORDERS:
        with shim.in_place_of_a_gpu(order), np.errstate(all="ignore"):
            if file == "linear":
                g, x, w, y = backward_args(5000, 1, 8, "float32")
                got = k.linear_backward(g, x, w, y, "relu", (False, False, True))[2]
                expected = reference.linear_backward(g, x, w, y, "relu")[2]
            else:
                x, w8, scale, b = int8_args(3, 5000, 40, "float32")
                got = k.linear_int8(x, w8, scale, b)
                expected = reference.linear_int8(x, w8, scale, b)
            seen |= not np.allclose(got, expected, rtol=1e-4, atol=1e-3)
    assert seen
