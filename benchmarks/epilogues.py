"""Bias and ReLU behind cuBLAS's product or in cuBLASLt's: ``python -m benchmarks.epilogues``.

Clocks ``linear`` on the GPU both ways, in turns, with results compared first. What it shows decides
about ``EPILOGUES_IN_CUBLASLT`` in kernels/gpu/linalg.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_ish.kernels import get_backend, reference, set_float32_matmul_precision
from tinygrad_ish.kernels.gpu import linalg

from . import report
from .cases import CUBES, LAYERS

CALLS = 50  # in a turn
WAYS = {"a kernel of ours": False, "in cuBLASLt": True}


def clock(size: tuple[int, ...], dtype: str, turns: int) -> tuple[list[float], float]:
    """(the µs of a call each way, the largest error of either as a share of the largest result)."""
    n, d, k = size
    gpu, rng = get_backend("cupy"), np.random.default_rng(0)
    args = [rng.standard_normal(s).astype(dtype) for s in ((n, d), (k, d), (k,))]
    expected = reference.linear(*[a.astype("float64") for a in args], "relu")
    on_gpu = [gpu.asarray(a) for a in args]
    out = gpu.empty((n, k), dtype)

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            gpu.linear(*on_gpu, "relu", out=out)
        gpu.xp.cuda.Device().synchronize()
        return 1e6 * (time.perf_counter() - start) / CALLS

    times: dict[bool, list[float]] = {way: [] for way in WAYS.values()}
    error = 0.0
    for number in range(turns + 1):  # the first is for warming up, and to see what comes out
        for way, taken in times.items():
            linalg.EPILOGUES_IN_CUBLASLT = way
            seconds = turn()
            if number:
                taken.append(seconds)
            else:
                wrong = np.abs(gpu.to_numpy(out).astype("float64") - expected).max()
                error = max(error, float(wrong / np.abs(expected).max()))
    return [statistics.median(taken) for taken in times.values()], error


def main(argv: Sequence[str] | None = None) -> int:
    """The table; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="benchmarks.epilogues")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args(argv)
    rows: list[list[Any]] = []
    if options.tf32:
        set_float32_matmul_precision("high")
    before = linalg.EPILOGUES_IN_CUBLASLT
    try:
        for size in [*LAYERS, *CUBES]:
            times, error = clock(size, options.dtype, options.turns)
            rows.append([" ".join(map(str, size)), *times, f"{times[0] / times[1]:.2f}", error])
    finally:
        linalg.EPILOGUES_IN_CUBLASLT = before
    report.table(["N D K", *[f"{way}, µs" for way in WAYS], "ratio", "error"], rows)
    return int(any(row[-1] > 1e-2 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
