"""The matrix products on tensor cores beside cuBLAS: ``python -m benchmarks.gemm [--size 4096]``.

First each result is compared with NumPy's in float64, on some of its rows; a wrong kernel is not
clocked, and the exit status is 1. Then they take turns, on operands that rotate so that no cache
holds them. The clock is the GPU's own, around ten products.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from typing import Any

import numpy as np

from tinygrad_ish.kernels import get_backend
from tinygrad_ish.kernels.gpu import _launch
from tinygrad_ish.kernels.gpu.gemm import gemm_mma, gemm_wgmma

PRODUCTS, ROWS = 10, 64


def contenders() -> dict[str, Any]:
    """Functions of a, b and out, by name."""
    found = {"cuBLAS": get_backend("cupy").matmul, "gemm_mma": gemm_mma}
    return {**found, "gemm_wgmma": gemm_wgmma} if _launch.device.arch == "sm_90a" else found


def error(product: Any, a: Any, b: Any, out: Any) -> float:
    """‖out - a b‖ / ‖a b‖ over the first and last rows."""
    out.fill(np.nan)
    product(a, b, out=out)
    get, rows = get_backend("cupy").to_numpy, [*range(ROWS), *range(-ROWS, 0)]
    expected = get(a)[rows].astype("float64") @ get(b).astype("float64")
    return float(
        np.linalg.norm(get(out)[rows].astype("float64") - expected) / np.linalg.norm(expected)
    )


def seconds(product: Any, operands: list[Any]) -> float:
    """The time of one product, of ``PRODUCTS`` one after the other."""
    cupy = get_backend("cupy").xp
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for i in range(PRODUCTS):
        a, b, out = operands[i % len(operands)]
        product(a, b, out=out)
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) * 1e-3 / PRODUCTS


def measure(products: dict[str, Any], operands: list[Any], rounds: int) -> dict[str, float]:
    """The median seconds of a product, by name; the products take turns."""
    times: dict[str, list[float]] = {name: [] for name in products}
    for turn in range(rounds + 2):  # two to warm up
        for name, product in products.items():
            taken = seconds(product, operands)
            if turn > 1:
                times[name].append(taken)
    return {name: statistics.median(all_times) for name, all_times in times.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns, a multiple of 8")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(arguments)
    k, n, rng = get_backend("cupy"), given.size, np.random.default_rng(0)
    if given.dtype == "bfloat16":
        importlib.import_module("ml_dtypes")  # NumPy knows the name then

    def random() -> Any:
        return k.asarray(rng.normal(size=(n, n)).astype("float32").astype(given.dtype))

    operands = [(random(), random(), k.empty((n, n), given.dtype)) for _ in range(3)]
    products = contenders()
    for name, product in products.items():
        found = error(product, *operands[0])
        if not found < 1e-2:
            print(f"{name} is wrong: a relative error of {found:.2g}")
            return 1
    medians = measure(products, operands, given.rounds)
    print(f"{n} x {n} x {n}, {given.dtype}, {_launch.device.arch}: median of {given.rounds}")
    for name, taken in medians.items():
        share = medians["cuBLAS"] / taken
        speed = 2 * n**3 / taken * 1e-12
        print(f"{name:12} {taken * 1e6:9.1f} us {speed:7.1f} TFLOP/s {share:7.1%} of cuBLAS")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
