"""The dtypes there are, and PyTorch's rules of promotion.

A dtype is a ``numpy.dtype``: ``x.dtype == tg.float32`` and ``x.dtype == "float32"`` both hold.
``bfloat16`` is that of the package ml_dtypes, imported when it is first asked for: NumPy has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .kernels.reference import is_float

bool_ = np.dtype(np.bool_)
uint8, int8, int16, int32, int64 = (
    np.dtype(name) for name in ("uint8", "int8", "int16", "int32", "int64")
)
float16, float32, float64 = (np.dtype(name) for name in ("float16", "float32", "float64"))

SUPPORTED = (bool_, uint8, int8, int16, int32, int64, float16, float32, float64)  # NumPy's own
NAMES = frozenset([*(d.name for d in SUPPORTED), "bfloat16"])
DEFAULT_FLOAT = float32

_RANKS = {"b": 0, "u": 1, "i": 1, "f": 2}
_SCALARS = ((bool, bool_), (int, int64), (float, DEFAULT_FLOAT))


if TYPE_CHECKING:
    bfloat16: np.dtype
else:

    def __getattr__(name: str) -> Any:
        if name != "bfloat16":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _bfloat16()


def _bfloat16() -> np.dtype:
    """The dtype of the upper halves of float32. Raises ImportError where ml_dtypes is missing."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "bfloat16 needs the package ml_dtypes: pip install 'tinygrad_ish[bfloat16]'"
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


def is_supported(dtype: np.dtype) -> bool:
    """Whether there are tensors of this dtype."""
    return dtype in SUPPORTED or dtype.name == "bfloat16"


def as_dtype(dtype: Any) -> np.dtype:
    """``dtype`` (a dtype, its name, or bool, int, float) as one of those supported.

    Raises TypeError for any other, complex and unsigned ones among them, and ImportError for
    bfloat16 where ml_dtypes is missing.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":  # unknown to NumPy until it is imported
        return _bfloat16()
    try:
        found = DEFAULT_FLOAT if dtype is float else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not is_supported(found):
        names = ", ".join([*(d.name for d in SUPPORTED), "bfloat16"])
        raise TypeError(f"dtype: expected one of {names}; got {dtype!r}; cast the data first")
    return found


def rank(dtype: np.dtype) -> int:
    """The place of its kind in bool < integer < float."""
    return _RANKS["f" if is_float(dtype) else dtype.kind]


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype that two arrays of one standing meet in: a float wins over any integer; float16
    and bfloat16, of which none holds the other, meet in float32."""
    if a == b:
        return a
    if is_float(a) != is_float(b):
        return a if is_float(a) else b
    if is_float(a) and a.itemsize == b.itemsize:
        return float32
    return np.promote_types(a, b)


def result_type(*operands: Any) -> np.dtype:
    """The dtype of an operation on these tensors and Python numbers, by PyTorch's rules.

    Kinds are ordered bool < integer < float. A tensor with dimensions outweighs a
    zero-dimensional one, and that a Python number, unless the lighter one is of a higher kind:
    float32[3] + float64[] is float32, int64[3] + 1.5 is float32.
    """
    weights: list[np.dtype | None] = [None, None, None]  # numbers, zero-dimensional, the others
    for x in operands:
        array = hasattr(x, "ndim")
        place, dtype = (1 + (x.ndim > 0), x.dtype) if array else (0, _scalar_dtype(x))
        held = weights[place]
        weights[place] = dtype if held is None else promote(held, dtype)
    result = None
    for dtype in reversed(weights):
        if dtype is None:
            continue
        if result is None or rank(dtype) > rank(result):
            result = dtype
    assert result is not None
    return result


def _scalar_dtype(x: Any) -> np.dtype:
    for kind, dtype in _SCALARS:
        if isinstance(x, kind):
            return dtype
    raise TypeError(f"expected a tensor or a bool, int or float; got {type(x).__name__}: {x!r}")
