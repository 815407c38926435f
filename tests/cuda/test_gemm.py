"""The matrix products on tensor cores, on the CPU: their indices, swizzles, pipelines and barriers
(tensorshim.h does what the instructions do), and what they tell the copy engine."""

from __future__ import annotations

import ctypes
import struct
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from tinygrad_ish.kernels import get_backend, why_missing
from tinygrad_ish.kernels.gpu import _launch, _nvrtc
from tinygrad_ish.kernels.gpu import gemm as module
from tinygrad_ish.kernels.gpu.gemm import gemm, gemm_mma, gemm_wgmma

from . import shim
from .test_kernels import Watched

pytest.importorskip("ml_dtypes")  # bfloat16
on_the_cpu = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

KERNELS = (gemm_mma, gemm_wgmma)
DTYPES = ("float16", "bfloat16")
NUMBERS = {6: "float16", 9: "bfloat16"}  # of CUtensorMapDataType in cuda.h


class FakeDriver:
    """``cuTensorMapEncodeTiled`` with the rules of its documentation; the map is what tensorshim.h
    reads."""

    def cuTensorMapEncodeTiled(
        self, to: Any, dtype: int, rank: int, address: Any, dims: Any, strides: Any, box: Any,
        steps: Any, interleave: int, swizzle: int, promotion: int, fill: int,
    ) -> int:  # fmt: skip
        assert to.value % 128 == 0 and address.value % 16 == 0
        assert dtype in NUMBERS and rank == 2 == len(dims) == len(box) == len(steps)
        assert len(strides) == 1 and strides[0] % 16 == 0 and strides[0] < 2**40
        assert strides[0] >= 2 * dims[0] and all(0 < n <= 2**32 for n in dims)
        assert all(0 < n <= 256 for n in box) and list(steps) == [1, 1]
        assert 2 * box[0] <= 128 and 2 * box[0] % 16 == 0  # a row of a 128-byte swizzle
        assert (interleave, swizzle, fill) == (0, 3, 0) and promotion in (0, 1, 2, 3)
        fields = address.value, dims[1], dims[0], strides[0], box[1], box[0]
        ctypes.memmove(to.value, struct.pack("<4q2i", *fields).ljust(128, b"\0"), 128)
        return 0


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if why_missing("cupy") is not None or isinstance(_launch.device, shim.ShimDevice):
        monkeypatch.setattr(module, "_driver", FakeDriver)
    module._tensor_map.cache_clear()
    yield
    module._tensor_map.cache_clear()


def whole(rng: np.random.Generator, m: int, k: int, n: int, dtype: str) -> tuple[Any, Any]:
    """Matrices of -1, 0 and 1: for k up to 256 their product is exact, in any order."""
    return tuple(rng.integers(-1, 2, s).astype(dtype) for s in ((m, k), (k, n)))  # type: ignore


def product(a: Any, b: Any) -> Any:
    return (a.astype("float64") @ b.astype("float64")).astype(a.dtype)


SIZES = [
    (1, 8, 8), (128, 64, 256), (129, 72, 264), (64, 200, 136), (300, 8, 520), (127, 256, 16),
]  # fmt: skip


@on_the_cpu
@pytest.mark.parametrize("order", shim.TESTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda f: f.__name__)
def test_products_are_exact(kernel: Any, dtype: str, order: str) -> None:
    rng = np.random.default_rng(0)
    with shim.in_place_of_a_gpu(order):
        for m, k, n in SIZES:
            watched = Watched()
            a, b = (watched.array(x) for x in whole(rng, m, k, n, dtype))
            out = watched.array(np.full((m, n), np.nan, dtype))
            assert kernel(a, b, out) is out
            np.testing.assert_array_equal(out, product(a, b), f"{m} x {k} x {n}")
            watched.check(f"{m} x {k} x {n}")


@on_the_cpu
@pytest.mark.parametrize("order", shim.TESTED)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda f: f.__name__)
def test_many_laps_and_tiles(kernel: Any, order: str) -> None:
    """The ring of stages is gone round twice and more; with wgmma a block makes several tiles."""
    rng = np.random.default_rng(1)
    with shim.in_place_of_a_gpu(order):
        for m, k, n in ((260, 136, 776), (65, 840, 72)):
            a, b = (rng.normal(size=s).astype("bfloat16") for s in ((m, k), (k, n)))
            expected = a.astype("float64") @ b.astype("float64")
            got = kernel(a, b).astype("float64")
            np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-4)


@on_the_cpu
@settings(max_examples=12)
@given(st.integers(1, 280), st.integers(1, 32), st.integers(1, 70), st.sampled_from(KERNELS))
@example(128, 16, 65, gemm_wgmma)
def test_any_shape(m: int, k: int, n: int, kernel: Any) -> None:
    a, b = whole(np.random.default_rng(m), m, 8 * k, 8 * n, "bfloat16")
    with pytest.MonkeyPatch.context() as patch, shim.in_place_of_a_gpu("shuffled"):
        patch.setattr(module, "_driver", FakeDriver)
        np.testing.assert_array_equal(kernel(a, b), product(a, b))


@on_the_cpu
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda f: f.__name__)
def test_any_layout_of_the_operands(kernel: Any) -> None:
    rng = np.random.default_rng(2)
    a, b = whole(rng, 24, 16, 40, "float16")
    expected, watched = product(a, b), Watched()
    wide = np.full((24, 50), 7, "float16")
    with shim.in_place_of_a_gpu():
        np.testing.assert_array_equal(kernel(np.asfortranarray(a), b[:, ::-1]), expected[:, ::-1])
        odd = [watched.array(x, 1) for x in (a, b, np.full((24, 40), np.nan, "float16"))]
        assert kernel(*odd) is odd[2]
        np.testing.assert_array_equal(odd[2], expected)
        kernel(a, b, wide[:, 3:43])
        np.testing.assert_array_equal(wide[:, 3:43], expected)
        assert (wide[:, :3] == 7).all() and (wide[:, 43:] == 7).all()
        assert kernel(a[:0], b).shape == (0, 40) and kernel(a, b[:, :0]).shape == (24, 0)
        nothing = np.full((24, 40), np.nan, "float16")
        assert not kernel(a[:, :0], b[:0], nothing).any()
    watched.check("unaligned")


@on_the_cpu
def test_the_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for kernel in KERNELS:
        name = kernel.__name__
        monkeypatch.setattr(module, name, lambda a, b, out, name=name: ran.append(name))
    with shim.in_place_of_a_gpu() as device:
        for device.arch in ("sm_80", "sm_90a", "sm_120a"):
            gemm(None, None)
    assert ran == ["gemm_mma", "gemm_wgmma", "gemm_mma"]


def test_what_is_refused() -> None:
    x = np.ones((16, 16), "float16")
    with shim.in_place_of_a_gpu() as device:
        with pytest.raises(TypeError, match="got float32 and float32: cast"):
            gemm(x.astype("float32"), x.astype("float32"))
        with pytest.raises(TypeError, match="got float16 and bfloat16"):
            gemm(x, x.astype("bfloat16"))
        with pytest.raises(ValueError, match=r"expected a \(M, K\) and b \(K, N\), got \(16, 8\)"):
            gemm(x[:, :8], x)
        with pytest.raises(ValueError, match=r"multiples of 8.* K = 12, N = 16: pad"):
            gemm(x[:, :12], x[:12])
        with pytest.raises(ValueError, match="overlaps"):
            gemm(x, x, x)
        with pytest.raises(ValueError, match=r"at most 2\*\*30"):
            gemm(np.broadcast_to(x[:1], (2**30 + 1, 16)), x)
        device.arch = "sm_75"
        with pytest.raises(ValueError, match=r"8\.0.* this one is sm_75: use matmul"):
            gemm(x, x)
        with pytest.raises(ValueError, match=r"9\.0.* this one is sm_75: use gemm"):
            gemm_wgmma(x, x)


@on_the_cpu
def test_the_driver_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = types.SimpleNamespace(cuTensorMapEncodeTiled=lambda *args: 1)
    monkeypatch.setattr(module, "_driver", lambda: refusing)
    x = np.ones((16, 16), "float16")
    with shim.in_place_of_a_gpu(), pytest.raises(RuntimeError, match="error 1 for a matrix of 16"):
        gemm_wgmma(x, x)


# --- faults that these tests are there to find ---

FAULTS = [
    ("gemm_mma", "__syncthreads();  ", ""),
    ("gemm_mma", "copies_wait<STAGES - 2>();", "copies_wait<STAGES - 1>();"),
    ("gemm_mma", "swizzled(to + i * ROW + chunk * 16)", "to + i * ROW + chunk * 16"),
    ("gemm_mma", "x + i < k && ", ""),
    ("gemm_wgmma", "wgmma_wait<1>();", ""),
    ("gemm_wgmma", "        wgmma_wait<0>();\n", ""),
    ("gemm_wgmma", "barrier_wait(empty + stage, lap ^ 1);", ""),
    ("gemm_wgmma", "barrier_wait(full + stage, lap);", ""),
    ("gemm_wgmma", "(empty + s, CONSUMER_WARPS)", "(empty + s, CONSUMER_WARPS - 1)"),
    ("gemm_wgmma", "(full + stage, STAGE_BYTES)", "(full + stage, STAGE_BYTES - 8192)"),
    ("gemm_wgmma", "PANEL_BYTES, 1024)", "1024, PANEL_BYTES)"),
    ("gemm_wgmma", "x + i > 0", "x > 0"),
    ("gemm_wgmma", "(-shared_address(shared) & 1023)", "0"),
]  # fmt: skip


@on_the_cpu
@pytest.mark.parametrize("file, right, wrong", FAULTS)
def test_a_fault_is_seen(
    file: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _nvrtc.source(file)
    assert text.count(right) == 1
    monkeypatch.setattr(_nvrtc, "source", lambda file: text.replace(right, wrong))
    watched = Watched()  # behind the operands is NaN
    a, b = (watched.array(x) for x in whole(np.random.default_rng(3), 200, 8 * 45, 264, "bfloat16"))
    seen = 0
    for order in shim.ORDERS:
        with shim.in_place_of_a_gpu(order):
            try:
                got = getattr(module, file)(a, b, np.full((200, 264), np.nan, a.dtype))
            except shim.KernelError:
                seen += 1
            else:
                seen += not np.array_equal(got, product(a, b))
    assert seen


@on_the_cpu
def test_a_wait_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _nvrtc.source("gemm_wgmma").replace("load_box(to, &a,", "if (x < 128) load_box(to, &a,")
    monkeypatch.setattr(_nvrtc, "source", lambda file: text)
    x = np.ones((16, 256), "bfloat16")
    with shim.in_place_of_a_gpu(), pytest.raises(shim.KernelError, match="waits for what nobody"):
        gemm_wgmma(x, x.T.copy())


# --- the arithmetic of addresses, by itself ---


def run(text: str, name: str, *args: Any, dtype: str = "bfloat16") -> None:
    """A kernel of this source in a block of 32 threads with 4 KB of shared memory."""
    device = shim.ShimDevice()
    text = textwrap.dedent(text)
    device.kernel(shim.build(text, dtype), name)((1,), (32,), args, 4096)


@on_the_cpu
def test_every_tile_is_made_once() -> None:
    text = """
    #include "gemm.cuh"
    KERNEL tiles(long long* counts, long long rows, long long columns) {
        for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) {
            Tile t = tile_at(i, int(rows), int(columns));
            counts[t.row * columns + t.column] += 1 + 1000 * (i == 0);
        }
    }"""
    for rows, columns in ((1, 1), (1, 40), (40, 1), (16, 5), (17, 5), (33, 32), (15, 3)):
        counts = np.zeros((rows, columns), np.int64)
        run(text, "tiles", counts, rows, columns)
        assert counts[0, 0] == 1001 and counts.sum() == 1000 + counts.size
        assert (counts.ravel()[1:] == 1).all()


@on_the_cpu
def test_the_swizzle_uses_every_bank() -> None:
    text = """
    #include "gemm.cuh"
    KERNEL places(long long* at, long long n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) at[i] = swizzled(16 * i);
    }"""
    at = np.empty(1024, np.int64)
    run(text, "places", at, len(at))
    assert sorted(at) == list(range(0, 16 * 1024, 16))  # nothing is lost
    chunks = at.reshape(-1, 8, 8)  # atoms, rows, chunks
    banks = chunks // 16 % 8
    rows, columns = np.sort(banks, axis=2), np.sort(banks, axis=1)
    assert (rows == np.arange(8)).all() and (columns == np.arange(8)[:, None]).all()
    assert (chunks // 1024 == np.arange(16)[:, None, None]).all()  # and stays within its atom


@on_the_cpu
def test_a_descriptor_is_as_the_ptx_isa_lays_it_out() -> None:
    describe = """
    KERNEL describe(unsigned long long* out) {
        DYNAMIC_SHARED(unsigned char, shared);
        out[0] = descriptor(shared + 1024 - 16, 8192, 1024);
        out[1] = shared_address(shared + 1024 - 16);
    }"""
    text = _nvrtc.source("gemm_wgmma") + textwrap.dedent(describe)
    out = np.empty(2, np.uint64)
    run(text, "describe", out)
    bits, address = int(out[0]), int(out[1])
    assert address == 1024
    fields = {0: (14, address), 16: (14, 8192), 32: (14, 1024)}
    for first, (width, value) in fields.items():
        assert (bits >> first & (1 << width) - 1) * 16 == value
        bits &= ~((1 << width) - 1 << first)
    assert bits == 1 << 62  # base offset 0, 128-byte swizzle, the rest 0


def test_constants_agree_with_the_files() -> None:
    for file, tile, shared in (
        ("gemm_mma", module.MMA_TILE, module.MMA_SHARED),
        ("gemm_wgmma", module.WGMMA_TILE, module.WGMMA_SHARED),
    ):
        text = _nvrtc.source(file)
        stages = int(text.partition("STAGES = ")[2][0])
        assert f"BM = {tile[0]}, BN = {tile[1]}, BK = 64" in text
        barriers = 16 * stages if "mbarrier" in text else 0
        assert shared == stages * 64 * sum(tile) * 2 + barriers


# --- starting such kernels ---


@on_the_cpu
def test_bytes_are_a_struct_by_value() -> None:
    text = """
    #include "common.cuh"
    struct Pair { long long first; double second; };
    KERNEL take(Pair p, double* out) { out[0] = p.first + p.second; }"""
    out = np.zeros(1)
    run(text, "take", _launch._by_value(struct.pack("<qd", 40, 2.5)), out, dtype="float32")
    assert out[0] == 42.5
    given = _launch._by_value(b"x" * 128)  # CuPy takes an array of one element by value
    assert given.size == 1 and given.itemsize == 128


def test_much_shared_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {8: 0}

    def set_attribute(kernel: int, attribute: int, value: int) -> None:
        asked[attribute] = value

    driver = types.SimpleNamespace(
        funcGetAttribute=lambda attribute, kernel: asked[attribute], funcSetAttribute=set_attribute
    )
    api = types.ModuleType("cupy_backends.cuda.api")
    monkeypatch.setattr(api, "driver", driver, raising=False)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api", api)
    device, function = _launch.Device(), types.SimpleNamespace(ptr=1)
    loaded = types.SimpleNamespace(get_function=lambda name: function)
    monkeypatch.setattr(device, "_module", lambda file, dtype: loaded)
    for shared, most in ((48 << 10, 0), (100 << 10, 100 << 10), (60 << 10, 100 << 10)):
        assert device.load("file", "float32", "name", shared) is function
        assert asked[8] == most
    with pytest.raises(shim.KernelError, match="at most 232448 bytes, not 232449"):
        shim.ShimDevice().load("gemm_mma", "float16", "gemm_mma", 232449)


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(why_missing("cupy") is not None, reason=str(why_missing("cupy")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_on_the_device(dtype: str) -> None:
    k, rng = get_backend("cupy"), np.random.default_rng(4)
    kernels = KERNELS if _launch.device.arch == "sm_90a" else KERNELS[:1]
    for kernel in kernels:
        for m, d, n in ((128, 256, 256), (521, 328, 776)):
            a, b = (rng.normal(size=s).astype(dtype) for s in ((m, d), (d, n)))
            out = k.full((m, n), np.nan, dtype)
            got = k.to_numpy(kernel(k.asarray(a), k.asarray(b), out)).astype("float64")
            expected = a.astype("float64") @ b.astype("float64")
            np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-3)
