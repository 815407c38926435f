"""The backends that a test body runs on; one that cannot run here is a skip with its reason."""

from __future__ import annotations

import os

import pytest

from tinygrad_ish.kernels import why_missing

# Whether the tests marked gpu run on the CPU (make test-gpu-shim): a thousand times slower.
STAND_IN = os.environ.get("TINYGRAD_ISH_GPU") == "stand-in"

_no_gpu = why_missing("cupy")

CPU_BACKENDS = ["numpy", "numba"]
CUPY = pytest.param(
    "cupy",
    marks=[pytest.mark.gpu, pytest.mark.skipif(_no_gpu is not None, reason=str(_no_gpu))],
)
BACKENDS = [*CPU_BACKENDS, CUPY]
DEVICES = ["numpy", CUPY]  # for what lies above the kernels
