"""Every CUDA file compiles for every architecture and dtype, without spilling registers."""

from __future__ import annotations

import os
import re

import pytest

from tinygrad_ish.kernels.gpu import _nvrtc

from ..backends import STAND_IN

pytestmark = pytest.mark.skipif(_nvrtc.why_missing() is not None, reason=str(_nvrtc.why_missing()))

FILES = sorted(f[:-3] for f in os.listdir(_nvrtc.FOLDER) if f.endswith(".cu"))
DTYPES = ("float32", "float64", "float16", "bfloat16")
ARCHS = ("sm_80", "sm_90")
# For files with a dtype or an architecture of their own.
ONLY_DTYPES: dict[str, tuple[str, ...]] = {
    "casts": ("uint8", "int8", "int16", "int32", "int64", *DTYPES),
    "gemm_mma": ("float16", "bfloat16"),
    "gemm_wgmma": ("float16", "bfloat16"),
}
ONLY_ARCHS: dict[str, tuple[str, ...]] = {"gemm_wgmma": ("sm_90a",)}
# The registers that a thread may take: 64 let 1,024 threads run on a multiprocessor.
MOST_REGISTERS = 64
MORE_REGISTERS: dict[str, int] = {
    "gemm_mma": 128,
    "gemm_wgmma": 168,
    "linear_int8": 128,
    "cross_entropy_lanes": 80,
}


def resources(log: str) -> list[tuple[str, int, int]]:
    """(kernel, registers, bytes on the stack) from what ``-Xptxas -v`` prints: registers that were
    spilled, and arrays that are indexed by what is not known then, lie on a stack in memory."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r", (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, log, re.DOTALL)
    return [(name, int(used), sum(map(int, stack))) for name, *stack, used in found]


@pytest.mark.parametrize("file", FILES)
def test_compiles_without_spills(file: str) -> None:
    kernels = set(
        re.findall(
            r"^KERNEL(?: __launch_bounds__\([^)]*\))? (\w+)\(", _nvrtc.source(file), re.MULTILINE
        )
    )
    assert kernels
    for arch in ONLY_ARCHS.get(file, ARCHS):
        dtypes = ONLY_DTYPES.get(file, DTYPES)
        for dtype in dtypes if STAND_IN else dtypes[-1:]:  # of make test-gpu-shim, of make test
            _, log = _nvrtc.compile_cubin(
                _nvrtc.source(file), file, arch, (f"-DT={dtype}", "-Xptxas", "-v")
            )
            assert "warning" not in log.lower(), log
            used = resources(log)
            assert {name for name, _, _ in used} == kernels
            for name, registers, spilled in used:
                what = (
                    f"{name} for {dtype} on {arch}: {registers} registers, {spilled} bytes of stack"
                )
                assert spilled == 0, what
                assert registers <= MORE_REGISTERS.get(name, MOST_REGISTERS), what


def test_errors_come_with_their_lines() -> None:
    with pytest.raises(_nvrtc.CompileError, match=r"wrong\.cu\(2\): error"):
        _nvrtc.compile_cubin("// a comment\nint f() { return undefined; }", "wrong", "sm_90")


HUNGRY = """
extern "C" __global__ void __launch_bounds__(1024, 2) hungry(const double* x, double* y) {
    double v[64];
    for (int i = 0; i < 64; i++) v[i] = x[i * threadIdx.x];
    for (int k = 0; k < 64; k++)
        for (int i = 0; i < 64; i++) v[i] = v[i] * v[63 - i] + v[k];
    for (int i = 0; i < 64; i++) y[i * threadIdx.x] = v[i];
}
"""


def test_a_spill_would_be_seen() -> None:
    _, log = _nvrtc.compile_cubin(HUNGRY, "hungry", "sm_90", ("-Xptxas", "-v"))
    [(name, _, spilled)] = resources(log)
    assert name == "hungry" and spilled > 0
