"""The CUDA kernels against the reference, on the CPU: the table of tests/test_kernels.py through
the shim, in three orders of warps, on memory whose borders are watched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.kernels import Backend, get_backend, gpu

from ..test_kernels import CASES, IN_PLACE, agree, arrays_in, run
from . import shim

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

RAN: Counter[str] = Counter()
BORDER = 256  # bytes of NaN before and behind an array


@pytest.fixture(params=shim.TESTED)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with shim.in_place_of_a_gpu(request.param):
        yield Backend("shim", "cpu", "numpy", gpu.__name__)


class Watched:
    """Arrays whose memory has borders: what a kernel writes there is seen."""

    def __init__(self) -> None:
        self._borders: list[np.ndarray] = []

    def array(self, x: np.ndarray, offset: int = 0) -> np.ndarray:
        """A copy of x that starts ``offset`` elements behind a multiple of 16 bytes."""
        memory = np.full(2 * BORDER + x.nbytes + 32, 0xFF, np.uint8)
        start = BORDER + -(memory.ctypes.data + BORDER) % 16 + offset * x.itemsize
        end = start + x.nbytes
        self._borders += [memory[:start], memory[end:]]
        inside = memory[start:end].view(x.dtype).reshape(x.shape)
        inside[...] = x
        return inside

    def every(self, value: Any, offset: int = 0) -> Any:
        """The value with each array in it, also in tuples, as ``array`` makes it."""
        if isinstance(value, tuple):
            return tuple(self.every(v, offset) for v in value)
        return self.array(value, offset) if isinstance(value, np.ndarray) else value

    def check(self, what: str) -> None:
        assert all((border == 0xFF).all() for border in self._borders), f"{what} wrote outside"


def compare(name: str, backend: Backend, case: Any, dtype: str, seed: int, offset: int) -> None:
    """A kernel on this case, with and without ``out``, against the reference."""
    args = case.make(np.random.default_rng(seed), dtype)
    what = f"{name} case {seed}: {dtype}, offset {offset}"
    watched = Watched()
    expected = run(name, get_backend("numpy"), Watched().every(args), case.kwargs)
    given = watched.every(args, offset)
    before = [x.tobytes() for x in arrays_in(given)]
    agree(run(name, backend, given, case.kwargs), expected, dtype, what)
    if name not in IN_PLACE:
        assert [x.tobytes() for x in arrays_in(given)] == before, f"{what} changed an input"
        poison = [None if e is None else np.full(e.shape, 99).astype(e.dtype) for e in expected]
        out = watched.every(tuple(poison), offset)
        out = out if len(out) > 1 else out[0]
        agree(run(name, backend, given, {**case.kwargs, "out": out}), expected, dtype, what)
    watched.check(what)
    RAN["the shim"] += 1


@pytest.mark.parametrize("name", sorted(gpu.KERNELS))
def test_kernel_agrees_with_the_reference(name: str, backend: Backend) -> None:
    for i, case in enumerate(CASES[name]):
        for dtype in case.dtypes:
            for offset in (0, 1):
                compare(name, backend, case, dtype, i, offset)
