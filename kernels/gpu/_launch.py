"""Starting the kernels of ``cu/*.cu``.

    launch("losses", "softmax_cross_entropy", x.dtype, n, 256, (x, labels, out, n, c))

Arrays are passed by their address, None as a null pointer, an int as ``long long``, a float as
``double``, a bool as ``bool``, bytes as a struct: kernels declare their parameters so. A launch
goes to CuPy's current stream, so it can be captured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _nvrtc

Kernel = Callable[..., None]  # (grid, block, arguments, bytes of shared memory)

MOST_BLOCKS_PER_SM = 8
SHARED_UNASKED = 48 << 10  # bytes of shared memory that a block gets; more must be asked for
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # of CUfunction_attribute in cuda.h


class Device:
    """The GPU that is current: its kernels, compiled and loaded as they are first needed."""

    @functools.cached_property
    def multiprocessors(self) -> int:
        import cupy

        return int(cupy.cuda.Device().attributes["MultiProcessorCount"])

    @functools.cached_property
    def arch(self) -> str:
        """The architecture, such as "sm_80", or "sm_90a": with what only this very one has."""
        import cupy

        capability = cupy.cuda.Device().compute_capability
        return f"sm_{capability}" + ("a" if int(capability) >= 90 else "")

    def load(self, file: str, dtype: str, name: str, shared: int = 0) -> Kernel:
        """The kernel ``name`` of ``cu/<file>.cu`` for numbers of this dtype, to be started with
        this many bytes of dynamic shared memory."""
        kernel = self._module(file, dtype).get_function(name)
        if shared > SHARED_UNASKED:
            from cupy_backends.cuda.api import driver

            asked = driver.funcGetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.ptr)
            driver.funcSetAttribute(kernel.ptr, MAX_DYNAMIC_SHARED_SIZE_BYTES, max(asked, shared))
        return kernel

    @functools.cache  # noqa: B019 (there is one device, and it lives as long as the process)
    def _module(self, file: str, dtype: str) -> Any:
        from cupy.cuda import function

        module = function.Module()
        module.load(_nvrtc.cubin(file, dtype, self.arch))
        return module


device: Any = Device()  # tests put one in its place that runs the same sources on the CPU


@functools.cache
def _kernel(file: str, dtype: str, name: str, shared: int) -> Kernel:
    return device.load(file, dtype, name, shared)


def launch(
    file: str,
    name: str,
    dtype: Any,
    grid: int | tuple[int, ...],
    block: int,
    args: tuple[Any, ...],
    shared: int = 0,
) -> None:
    """Run a kernel over ``grid`` blocks of ``block`` threads, with this many bytes of dynamic
    shared memory. Nothing happens for an empty grid."""
    grid = (grid,) if isinstance(grid, int) else grid
    if 0 in grid:
        return
    values = tuple([_by_value(a) for a in args])
    _kernel(file, np.dtype(dtype).name, name, shared)(grid, (block,), values, shared)


def _by_value(argument: Any) -> Any:
    """The argument as CuPy takes it."""
    if isinstance(argument, bytes):  # an array of one struct
        return np.frombuffer(argument, np.dtype((np.void, len(argument))))
    return np.uint64(0) if argument is None else argument


def blocks_for(n: int, each: int) -> int:
    """Blocks for a loop with a grid's stride over n elements, ``each`` of them in one go of a
    block: enough to fill the GPU, no more."""
    return min(-(-n // each), device.multiprocessors * MOST_BLOCKS_PER_SM)
