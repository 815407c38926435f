"""The CUDA kernels on the CPU, with warps in three orders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import shim
from .checks import Device, Kernels, kernels_on


@pytest.fixture(params=shim.ORDERS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    with kernels_on(Device(request.param)) as k:
        yield k
