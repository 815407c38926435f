"""The shim finds the faults that it is there to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import shim

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

SUM = """
#include "common.cuh"
KERNEL total(const T* x, T* out, long long n) {
    __shared__ A scratch[32];
    A sum = 0;
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) sum += A(x[i]);
    sum = over_warp(sum, Plus());
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        A all = 0;
        for (int w = 0; w < blockDim.x / 32; w++) all += scratch[w];
        out[blockIdx.x] = T(all);
    }
}
"""


def total(source: str, order: str, dtype: Any = "float32", threads: int = 128) -> Any:
    device = shim.ShimDevice()
    device.order = order
    x = np.arange(1000).astype(dtype)
    out = np.full(2, -1, dtype)
    device.kernel(shim.build(source, dtype), "total")((2,), (threads,), (x, out, 1000))
    return out


@pytest.mark.parametrize("order", shim.ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_runs(order: str, dtype: str) -> None:
    assert total(SUM, order, dtype).tolist() == [499500.0] * 2


def test_half_precision_rounds_as_numpy_does() -> None:
    text = '#include "common.cuh"\nKERNEL rounded(const float* x, T* y, long long n)'
    text += "{ if (threadIdx.x < n) y[threadIdx.x] = T(x[threadIdx.x]); }"
    x = np.array([0.1, -2.5e-8, 65504, 65519, 65520, 1e9, -np.inf, np.nan, 1 / 3], "float32")
    y = np.empty(len(x), "float16")
    device = shim.ShimDevice()
    device.kernel(shim.build(text, "float16"), "rounded")((1,), (32,), (x, y, len(x)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, x.astype("float16"))


def test_a_missing_barrier_reads_poison() -> None:
    assert np.isnan(total(SUM.replace("__syncthreads();", ""), "forward")).all()


def test_a_race_that_one_order_hides_shows_in_another() -> None:
    last_adds = SUM.replace("__syncthreads();", "").replace(
        "threadIdx.x == 0)", "threadIdx.x == 127)"
    )
    assert total(last_adds, "forward").tolist() == [499500.0] * 2
    assert np.isnan(total(last_adds, "reverse")).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("if (threadIdx.x < 64) __syncthreads(); else __syncthreads();", None),
        ("if (threadIdx.x < 40) return; __syncthreads();", "left behind"),
        ("if (threadIdx.x < 64)\n__syncthreads(); else\n__syncthreads();", "different barriers"),
        ("if (threadIdx.x % 2) __syncwarp(); __syncthreads();", "not all lanes"),
        ("if (threadIdx.x % 2) __shfl_sync(1, 0, 0); __syncthreads();", "leaves out"),
    ],
)  # fmt: skip
def test_barriers_that_cuda_does_not_define(wrong: str, message: str | None) -> None:
    source = SUM.replace("__syncthreads();", wrong)
    if message is None:  # on one line, which the shim takes for one barrier
        assert total(source, "forward").tolist() == [499500.0] * 2
        return
    with pytest.raises(shim.KernelError, match=message):
        total(source, "forward")
    assert total(SUM, "forward").tolist() == [499500.0] * 2  # the shim lives on


def test_an_off_by_one_is_seen_in_the_sum() -> None:
    assert total(SUM.replace("i < n", "i < n - 1"), "forward").tolist() == [498501.0] * 2


def test_what_is_no_parameter_is_refused() -> None:
    device = shim.ShimDevice()
    kernel = device.kernel(shim.build(SUM, "float32"), "total")
    with pytest.raises(TypeError, match="takes arrays"):
        kernel((1,), (32,), ("text",))
    with pytest.raises(shim.KernelError, match="do not compile"):
        shim.build("KERNEL total(const T* x) { nonsense }", "float32")
