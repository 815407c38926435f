"""Initial values of parameters, written in place and outside the graph."""

from __future__ import annotations

import math

from ..autograd import no_grad
from ..tensor import Tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with U(a, b)."""
    with no_grad():
        return tensor.uniform_(a, b)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with N(mean, std²)."""
    with no_grad():
        return tensor.normal_(mean, std)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one number."""
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def kaiming_uniform_(tensor: Tensor, a: float = 0.0) -> Tensor:
    """Fill a (fan_out, fan_in) weight with U(-b, b), b = √(6 / ((1 + a²) fan_in)).

    He et al., 2015; ``a`` is the slope of the leaky ReLU that follows. nn.Linear uses √5, which
    gives b = 1/√fan_in.
    """
    if tensor.ndim != 2:
        raise ValueError(f"kaiming_uniform_: expected a matrix, got shape {list(tensor.shape)}")
    bound = math.sqrt(6.0 / ((1 + a * a) * tensor.shape[1])) if tensor.shape[1] else 0.0
    return uniform_(tensor, -bound, bound)
