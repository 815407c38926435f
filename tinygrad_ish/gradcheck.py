"""Checking a gradient against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import dtypes
from .autograd import GradientError, no_grad
from .tensor import Tensor, as_tensor


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
) -> bool:
    """Whether ``func``'s gradients are those that central differences show. Returns True.

    ``func`` takes ``inputs`` and gives one tensor or several. The outputs are weighted by fixed
    random numbers and summed to s; for every element x of each float64 input that requires a
    gradient, ds/dx is compared with (s(x + eps) - s(x - eps)) / 2 eps.

    Raises GradientError naming the input and its worst element, TypeError if no input is a
    float64 leaf that requires a gradient. Stay away from kinks, where differences mean nothing.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [
        (i, x)
        for i, x in enumerate(given)
        if isinstance(x, Tensor) and x.requires_grad and x.is_leaf and x.dtype == dtypes.float64
    ]
    if not checked:
        raise TypeError(
            "gradcheck: no input is a float64 leaf that requires a gradient; make one with "
            "tinygrad_ish.tensor(data, dtype=tinygrad_ish.float64, requires_grad=True)"
        )
    analytic = _analytic(func, given, [x for _, x in checked])
    for (i, x), got in zip(checked, analytic, strict=True):
        expected = _numeric(func, given, x, eps)
        _compare(i, got, expected, atol, rtol)
    return True


def _weighted(func: Callable[..., Any], inputs: list[Any]) -> Tensor:
    """The outputs, weighted by fixed random numbers, summed to one."""
    rng = np.random.default_rng(0)
    outputs = func(*inputs)
    total = None
    for y in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
        if not dtypes.is_float(y.dtype):
            continue
        weights = as_tensor(rng.uniform(0.5, 1.5, y.shape), y.dtype, y.backend)
        part = (y * weights).sum()
        total = part if total is None else total + part
    if total is None:
        raise TypeError("gradcheck: the function gives no floating tensor")
    return total


def _analytic(
    func: Callable[..., Any], inputs: list[Any], wanted: list[Tensor]
) -> list[np.ndarray]:
    kept = [x.grad for x in wanted]
    for x in wanted:
        x.grad = None
    _weighted(func, inputs).backward()
    found = [np.zeros(x.shape) if x.grad is None else x.grad.cpu().numpy().copy() for x in wanted]
    for x, grad in zip(wanted, kept, strict=True):
        x.grad = grad
    return found


def _numeric(func: Callable[..., Any], inputs: list[Any], x: Tensor, eps: float) -> np.ndarray:
    out = np.zeros(x.shape)
    with no_grad():
        for at in np.ndindex(*x.shape):
            value = x._array[at].item()
            ends = []
            try:
                for moved in (value + eps, value - eps):
                    x._array[at] = moved
                    ends.append(_weighted(func, inputs).item())
            finally:
                x._array[at] = value
            out[at] = (ends[0] - ends[1]) / (2 * eps)
    return out


def _compare(i: int, got: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> None:
    excess = np.abs(got - expected) - (atol + rtol * np.abs(expected))
    excess = np.where(np.isfinite(excess), excess, np.inf)
    if excess.size and excess.max() > 0:
        at = np.unravel_index(excess.argmax(), excess.shape)
        raise GradientError(
            f"gradcheck: the gradient of input {i} is wrong in {int((excess > 0).sum())} of "
            f"{excess.size} elements; the worst is {[int(n) for n in at]}: backward gives "
            f"{got[at]:.9g}, central differences {expected[at]:.9g}"
        )
