"""What the tests of single kernel files share: the kernels on the shim, compared with the truth in
float64, at any alignment, and sources with planted faults."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.kernels import Backend, gpu, reference
from tinygrad_ish.kernels.gpu import _nvrtc

from ..test_kernels import results_of
from . import shim
from .test_kernels import Watched

DTYPES = ("float32", "float64", "float16", "bfloat16")
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}


class Device(shim.ShimDevice):
    """The shim; ``loaded`` has the kernels that were asked for. ``faults`` change the sources."""

    def __init__(self, order: str = "forward", *faults: tuple[str, str]) -> None:
        super().__init__()
        self.order = order
        self.loaded: set[str] = set()
        self._faults = faults

    def load(self, file: str, dtype: str, name: str, shared: int = 0) -> Any:
        self.loaded.add(name)
        text = self._planted(whole(file)) if self._faults else _nvrtc.source(file)
        return self.kernel(shim.build(text, dtype), name)

    def _planted(self, text: str) -> str:
        for right, wrong in self._faults:
            if right not in text:
                raise LookupError(f"the source has no longer {right!r}: plant another fault")
            text = text.replace(right, wrong)
        return text


def whole(file: str) -> str:
    """The text of a source with those of its own headers."""
    seen: set[str] = set()

    def header(found: re.Match[str]) -> str:
        if found[1] in seen:
            return ""
        seen.add(found[1])
        with open(os.path.join(_nvrtc.FOLDER, found[1]), encoding="utf-8") as text:
            return included(text.read())

    def included(text: str) -> str:
        return re.sub(r'^#include "(\w+\.cuh)"$', header, text, flags=re.MULTILINE)

    return included(_nvrtc.source(file))


class Kernels(Backend):
    """The CUDA kernels on this device, by name."""

    def __init__(self, device: Device) -> None:
        super().__init__("shim", "cpu", "numpy", gpu.__name__)
        self.used = device.loaded


@contextlib.contextmanager
def kernels_on(device: Device) -> Iterator[Kernels]:
    with shim.in_place_of_a_gpu():
        shim.use(device)
        yield Kernels(device)


def as_dtype(name: str) -> Any:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def normal(shape: Any, dtype: str, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(as_dtype(dtype))


def wide(x: Any) -> Any:
    """An array of floats in float64; anything else as it is."""
    floating = isinstance(x, np.ndarray) and reference.is_float(x.dtype)
    return x.astype(np.float64) if floating else x


def check(
    k: Backend, name: str, *args: Any, offset: int = 0, truth: Any = None, **options: Any
) -> np.ndarray:
    """The kernel's (first) result. All are compared with the reference's in float64 (or ``truth``),
    with ``out`` and without, the arrays ``offset`` elements behind a multiple of 16 bytes."""
    watched = Watched()
    given = [watched.array(x, offset) if isinstance(x, np.ndarray) else x for x in args]
    before = [x.tobytes() for x in given if isinstance(x, np.ndarray)]
    if truth is None:
        truth = getattr(reference, name)(*map(wide, args), **options)
    results = results_of(getattr(k, name)(*given, **options))
    blank = [None if r is None else np.full(r.shape, 99).astype(r.dtype) for r in results]
    outs = watched.every(tuple(blank), offset)
    out = outs if len(outs) > 1 else outs[0]
    returned = results_of(getattr(k, name)(*given, **options, out=out))
    assert [x.tobytes() for x in given if isinstance(x, np.ndarray)] == before
    watched.check(name)
    for got, into, back, expected in zip(results, outs, returned, results_of(truth), strict=True):
        assert back is into
        if got is None or expected is None:
            assert got is expected
            continue
        assert into.tobytes() == got.tobytes(), f"{name}: into out, another result"
        assert got.shape == np.shape(expected)
        tolerance = TOLERANCE.get(got.dtype.name, 0)
        np.testing.assert_allclose(
            wide(got), expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} {got.dtype}"
        )
    return results[0]


def sees(fault: tuple[str, str], run: Callable[[Kernels], object]) -> None:
    """``run`` passes on the sources as they are, and fails on those with this fault."""
    with kernels_on(Device()) as k:
        run(k)
    with kernels_on(Device("forward", fault)) as k, pytest.raises(AssertionError) as caught:
        run(k)
    assert "do not compile" not in str(caught.value)
