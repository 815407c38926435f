"""What the Python side of every kernel does with its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import check_out

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def compilable(*arrays: np.ndarray) -> bool:
    """Whether compiled kernels take these arrays: all float32 or all float64, and aligned.

    The reference serves the others.
    """
    dtype = arrays[0].dtype
    if dtype != _FLOATS[0] and dtype != _FLOATS[1]:
        return False
    for x in arrays:  # noqa: SIM110 (all(…) takes a microsecond more)
        if x.dtype != dtype or not x.flags.aligned:
            return False
    return True


def destination(
    out: np.ndarray | None,
    shape: tuple[int, ...],
    dtype: Any,
    *inputs: Any,
    elementwise: bool = False,
) -> np.ndarray:
    """C-contiguous memory to compute into: ``out`` itself, once checked, where it serves."""
    if out is None:
        return np.empty(shape, dtype)
    check_out(out, shape, dtype, *inputs, elementwise=elementwise)
    return out if out.flags.carray else np.empty(shape, dtype)


def deliver(result: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The result in ``out``, if one was given and did not serve as the destination."""
    if out is None or out is result:
        return result
    out[...] = result
    return out
