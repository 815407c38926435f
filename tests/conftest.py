"""Settings that every test shares, and the promise that CI compares with PyTorch."""

from __future__ import annotations

import os
import sys
from collections import Counter

# Numba's, PyTorch's and OpenBLAS's threads would contend for the cores of one process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

REQUIRE_TORCH = "TINYGRAD_ISH_REQUIRE_TORCH"
REQUIRE_NVRTC = "TINYGRAD_ISH_REQUIRE_NVRTC"
REQUIRE_GPU = "TINYGRAD_ISH_REQUIRE_GPU"
GPU = "TINYGRAD_ISH_GPU"  # "stand-in": run what is marked gpu on the CPU (make test-gpu-shim)

if os.environ.get(GPU):  # before anything looks for CuPy
    if os.environ[GPU] != "stand-in":
        raise pytest.UsageError(f"{GPU}: expected 'stand-in' or nothing, got {os.environ[GPU]!r}")
    from tests.cuda import cuda_stand_in, cupy_stand_in

    cupy_stand_in.install()

    from tests.cuda import fake_blas, shim

    if shim.why_missing() is not None:
        raise pytest.UsageError(f"{GPU}: the CUDA kernels cannot run here: {shim.why_missing()}")
    record = cuda_stand_in.record
    shim.use(shim.ShimDevice(record))
    fake_blas.use(fake_blas.FakeBlas(record, cuda_stand_in.current_stream, cuda_stand_in.alloc))

import tinygrad_ish as tg  # noqa: E402

# A first call compiles, which no per-example deadline should time.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_sessionstart() -> None:
    reason = tg.kernels.why_missing("cupy")
    if os.environ.get(REQUIRE_GPU) and reason is not None:
        raise pytest.UsageError(f"{REQUIRE_GPU} is set, so the tests must run on a GPU. {reason}")
    if not os.environ.get(REQUIRE_TORCH):
        return
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise pytest.UsageError(
            f"{REQUIRE_TORCH} is set, so every comparison with PyTorch must run, and torch cannot "
            f"be imported: {error}. Install it: pip install -e '.[parity]'"
        ) from error


def _refuse_skip(report: Any) -> None:
    """Turn a skip for want of PyTorch or NVRTC into a failure where that is required."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    for variable, word in ((REQUIRE_TORCH, "torch"), (REQUIRE_NVRTC, "nvrtc")):
        if os.environ.get(variable) and word in reason.lower():
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid}: {variable} is set and this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(autouse=True)
def _fresh_defaults() -> Generator[None, None, None]:
    """Each test starts from the default device and the same seed."""
    tg.set_default_device("cpu")
    tg.manual_seed(0)
    yield
    tg.set_default_device("cpu")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was skipped and why, and how many comparisons ran on each backend."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, n in reasons.items():
        terminalreporter.write_line(f"skipped {n}: {reason}")
    for module in list(sys.modules.values()):
        ran = getattr(module, "RAN", None)
        if ran and module.__name__.startswith("tests."):
            counts = ", ".join(f"{n} on {what}" for what, n in sorted(ran.items()))
            terminalreporter.write_line(f"{module.__name__}: compared {counts}")
