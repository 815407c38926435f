"""The backends that a test body runs on; one that cannot run here is a skip with its reason."""

from __future__ import annotations

import pytest

from tinygrad_ish.kernels import why_missing

_no_gpu = why_missing("cupy")

CPU_BACKENDS = ["numpy", "numba"]
BACKENDS = [
    *CPU_BACKENDS,
    pytest.param(
        "cupy",
        marks=[pytest.mark.gpu, pytest.mark.skipif(_no_gpu is not None, reason=str(_no_gpu))],
    ),
]
