"""What the Python side of every CUDA kernel does with its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import Array, check_out, namespace

FLOATS = ("float16", "bfloat16", "float32", "float64")


def compilable(*arrays: Array | None) -> bool:
    """Whether the kernels take these arrays: of one floating dtype, C-contiguous.

    The reference serves the others.
    """
    given = [x for x in arrays if x is not None]
    dtype = given[0].dtype
    return dtype.name in FLOATS and all(x.dtype == dtype and x.flags.c_contiguous for x in given)


def address(x: Array) -> int:
    """Where the array's memory begins."""
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


def destination(
    out: Array | None,
    shape: tuple[int, ...],
    dtype: Any,
    *inputs: Any,
    elementwise: bool = False,
) -> Array:
    """C-contiguous memory to compute into: ``out`` itself, once checked, where it serves."""
    if out is not None:
        check_out(out, shape, dtype, *inputs, elementwise=elementwise)
        if out.flags.c_contiguous:
            return out
    return namespace(*inputs).empty(shape, dtype)


def deliver(result: Array, out: Array | None) -> Array:
    """The result in ``out``, if one was given and did not serve as the destination."""
    if out is None or out is result:
        return result
    out[...] = result
    return out
