"""The CUDA kernels on the CPU, with warps in several orders; all tests here are marked ``cuda``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shim
from .checks import Device, Kernels, kernels_on


@pytest.fixture(params=shim.TESTED)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    with kernels_on(Device(request.param)) as k:
        yield k


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)
