"""Clipping of gradients, between ``backward`` and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..autograd import Array, refuse_mixed
from ..kernels import Backend
from ..tensor import Tensor, zeros


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients in place so that their norm, taken over all of them together, is at
    most ``max_norm``; the norm that they had is returned, as a tensor ().

    The norm is (Σ |g|ᵖ)^(1/p) with p = ``norm_type`` > 0, or for infinity the largest |g|.
    Parameters without a gradient are left out. An infinite norm makes the gradients 0 or NaN, a NaN
    makes all of them NaN; ``error_if_nonfinite`` raises ValueError instead, before any is changed,
    and for that reads the norm (the other form reads no value).
    """
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be above 0, got {norm_type}")
    _check_limit("clip_grad_norm_: max_norm", max_norm)
    grads = _gradients("clip_grad_norm_", parameters)
    if not grads:
        return zeros(())
    k = grads[0].backend
    total = _norm_of(k, grads, norm_type)
    if error_if_nonfinite and not math.isfinite(Tensor(total, k).item()):
        raise ValueError(
            f"clip_grad_norm_: the norm of order {norm_type} of the gradients is "
            f"{float(total)}; look for the loss or layer that overflows, or clip with "
            "error_if_nonfinite=False"
        )
    scale = k.clip_scale(total, float(max_norm))
    scales = {g.dtype: scale if g.dtype == scale.dtype else k.cast(scale, g.dtype) for g in grads}
    for g in grads:
        k.mul(g._array, scales[g.dtype], out=g._array)
        g._version.bump("clip_grad_norm_")
    return Tensor(total, k)


def _norm_of(k: Backend, grads: list[Tensor], norm_type: float) -> Array:
    """The norm of all gradients; of several dtypes, the norm of each one's in the widest."""
    norms = {
        dtype: k.grad_norm(tuple(g._array for g in grads if g.dtype == dtype), norm_type)
        for dtype in dict.fromkeys(g.dtype for g in grads)
    }
    if len(norms) == 1:
        return next(iter(norms.values()))
    widest = max(norms, key=lambda dtype: dtype.itemsize)
    return k.grad_norm(tuple(k.cast(norm, widest) for norm in norms.values()), norm_type)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Bring every element of the gradients into -clip_value … clip_value, in place; NaN stays."""
    _check_limit("clip_grad_value_: clip_value", clip_value)
    for g in _gradients("clip_grad_value_", parameters):
        g.backend.minimum(g._array, float(clip_value), out=g._array)
        g.backend.maximum(g._array, -float(clip_value), out=g._array)
        g._version.bump("clip_grad_value_")


def _check_limit(name: str, limit: float) -> None:
    if not limit >= 0:
        raise ValueError(f"{name} must be a number of 0 or more, got {limit!r}")


def _gradients(name: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The gradients there are, all of one backend."""
    grads = []
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}: expected tensors, got {type(p).__name__}")
        if p.grad is not None:
            grads.append(p.grad)
    for g in grads[1:]:
        if g.backend is not grads[0].backend:
            refuse_mixed(name, grads[0].backend, g.backend)
    return grads
