"""Layers and losses as functions."""

from __future__ import annotations

import math

from ..dtypes import is_float
from ..ops import linalg, losses
from ..tensor import Tensor, function

sigmoid = function(Tensor.sigmoid)
tanh = function(Tensor.tanh)
softmax = function(Tensor.softmax)
log_softmax = function(Tensor.log_softmax)


@function
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), written over ``input`` if ``inplace``."""
    return input.relu_() if inplace else input.relu()


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """input weightᵀ + bias, then ReLU if ``activation`` is "relu", as one kernel.

    input (…, D), weight (K, D), bias (K,) → (…, K). Raises ValueError for shapes that do not
    fit, TypeError for dtypes that differ.
    """
    operands = {"input": input, "weight": weight, **({} if bias is None else {"bias": bias})}
    for name, t in operands.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"linear: {name} must be a Tensor, got {type(t).__name__}")
    if len({t.dtype for t in operands.values()}) > 1 or not is_float(weight.dtype):
        got = ", ".join(f"{name} {t.dtype.name}" for name, t in operands.items())
        raise TypeError(f"linear: expected one float dtype, got {got}; cast with .to(dtype)")
    if weight.ndim != 2:
        raise ValueError(f"linear: expected weight (K, D), got {list(weight.shape)}")
    if input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: expected input (…, {weight.shape[1]}) for weight {list(weight.shape)}, got "
            f"input {list(input.shape)}"
            + ("; flatten the images first, x.flatten(1)" if _are_images(input, weight) else "")
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"linear: expected bias [{weight.shape[0]}] for weight {list(weight.shape)}, got "
            f"{list(bias.shape)}"
        )
    return linalg.Linear.apply(input, weight, bias, activation=activation)


def _are_images(input: Tensor, weight: Tensor) -> bool:
    return input.ndim > 2 and math.prod(input.shape[1:]) == weight.shape[-1]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target], with PyTorch's weights, smoothing and reductions.

    input (N, C), (C,) or (N, C, d1, …) floating; target of that shape without C, integer labels
    0..C-1 or ``ignore_index``; weight (C,). "mean" divides by the sum of the labels' weights.
    Raises ValueError for shapes that do not fit and labels out of range.
    """
    _check_cross_entropy(input, target, weight)
    target = target.long()
    axis = 1 if input.ndim > 1 else 0
    logits, labels = input, target
    if input.ndim != 2:  # the class axis last, the others as rows
        order = [i for i in range(input.ndim) if i != axis]
        logits = input.permute(*order, axis).reshape(target.numel(), input.shape[axis])
        labels = target.reshape(target.numel())
    loss = losses.SoftmaxCrossEntropy.apply(
        logits,
        labels,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def _check_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    for name, t in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(t, Tensor) and not (name == "weight" and t is None):
            raise TypeError(f"cross_entropy: {name} must be a Tensor, got {type(t).__name__}")
    if not is_float(input.dtype):
        raise TypeError(f"cross_entropy: input must be floating logits, got {input.dtype.name}")
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"cross_entropy: target must hold integer labels, got {target.dtype.name}; for "
            "one-hot rows use target.argmax(1)"
        )
    if weight is not None and weight.dtype != input.dtype:
        raise TypeError(
            f"cross_entropy: weight is {weight.dtype.name}, input {input.dtype.name}; cast one"
        )
    expected = input.shape[:1] + input.shape[2:] if input.ndim > 1 else ()
    if input.ndim < 1 or target.shape != expected:
        raise ValueError(
            f"cross_entropy: for input {list(input.shape)} expected target {list(expected)}, "
            f"got {list(target.shape)}; input holds a score for each class on axis "
            f"{1 if input.ndim > 1 else 0}, target one label for each row"
        )


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)², reduced by "mean", "sum" or "none".

    The shapes must be equal: (N, 1) against (N,) would broadcast to (N, N), a silent mistake.
    """
    for name, t in (("input", input), ("target", target)):
        if not isinstance(t, Tensor):
            raise TypeError(f"mse_loss: {name} must be a Tensor, got {type(t).__name__}")
    if input.dtype != target.dtype or not is_float(input.dtype):
        raise TypeError(
            f"mse_loss: both must be one float dtype, got {input.dtype.name} and "
            f"{target.dtype.name}; cast with .to(dtype)"
        )
    return losses.MSELoss.apply(input, target, reduction=reduction)
