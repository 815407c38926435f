"""Layers and losses as functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..amp import in_float32, in_low_precision
from ..dtypes import is_float
from ..kernels.reference import check_mse
from ..ops import elementwise, linalg, losses, normalization
from ..random import default_generator
from ..tensor import Tensor, function, where

sigmoid = function(Tensor.sigmoid)
tanh = function(Tensor.tanh)
softmax = function(Tensor.softmax)
log_softmax = function(Tensor.log_softmax)


@function
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), written over ``input`` if ``inplace``."""
    return input.relu_() if inplace else input.relu()


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where it is above 0, else ``negative_slope`` · input; the gradient at 0 is the slope.
    Written over ``input`` if ``inplace``."""
    _check_float("leaky_relu", {}, input=input)
    result = where(input > 0, input, input * negative_slope)
    return input._become(result, "leaky_relu") if inplace else result


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input · Φ(input), Φ the distribution function of the normal distribution; for
    ``approximate`` "tanh" the form x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    _check_float("gelu", {}, input=input)
    return elementwise.GELU.apply(input, approximate=approximate)


def _check_float(name: str, options: dict[str, Tensor | None], **tensors: Tensor) -> None:
    """Raise TypeError unless all are tensors of one float dtype; ``options`` may be None."""
    given = {**tensors, **{key: t for key, t in options.items() if t is not None}}
    for key, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: {key} must be a Tensor, got {type(t).__name__}")
    dtypes = {t.dtype for t in given.values()}
    if len(dtypes) > 1 or not is_float(dtypes.pop()):
        got = ", ".join(f"{key} {t.dtype.name}" for key, t in given.items())
        raise TypeError(f"{name}: expected one float dtype, got {got}; cast with .to(dtype)")


def check_probability(name: str, p: float) -> None:
    """Raise unless p is a number from 0 to 1."""
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"{name}: p, the share to drop, must be between 0 and 1, got {p!r}")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Each element 0 with probability p, else divided by 1 - p; ``input`` as it is where not
    ``training`` or p is 0. Written over ``input`` if ``inplace``.

    The numbers are those of the default generator: ``manual_seed`` repeats them. Raises ValueError
    for a p outside 0..1, TypeError for a tensor that is not floating.
    """
    check_probability("dropout", p)
    _check_float("dropout", {}, input=input)
    if not training or p == 0:
        return input
    state = default_generator.state(input.backend)
    result = elementwise.Dropout.apply(input, p=float(p), state=state)
    return input._become(result, "dropout") if inplace else result


@in_low_precision
def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """input weightᵀ + bias, then ReLU if ``activation`` is "relu", as one kernel.

    input (…, D), weight (K, D), bias (K,) → (…, K). Raises ValueError for shapes that do not
    fit, TypeError for dtypes that differ.
    """
    _check_float("linear", {"bias": bias}, input=input, weight=weight)
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


@in_float32
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(input - mean) / √(variance + eps) over the last axes, of ``normalized_shape``, then · weight
    + bias, which have that shape. The variance is the biased one.

    Raises ValueError for shapes that do not fit, TypeError for dtypes that differ.
    """
    _check_float("layer_norm", {"weight": weight, "bias": bias}, input=input)
    shape = tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: normalized_shape {list(shape)} must be the last axes of input "
            f"{list(input.shape)}"
        )
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.shape != shape:
            raise ValueError(f"layer_norm: expected {name} {list(shape)}, got {list(t.shape)}")
    return normalization.LayerNorm.apply(input, weight, bias, shape=shape, eps=float(eps))


@in_float32
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
    _check_classes("cross_entropy", input, target, weight)
    logits, labels = _rows_and_labels(input, target)
    loss = losses.SoftmaxCrossEntropy.apply(
        logits,
        labels,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


@in_float32
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input[target]: ``cross_entropy`` of what is a logarithm of probabilities already.

    Shapes, labels, weights and reductions as there.
    """
    _check_classes("nll_loss", input, target, weight)
    logp, labels = _rows_and_labels(input, target)
    loss = losses.NLLLoss.apply(
        logp, labels, weight, ignore_index=ignore_index, reduction=reduction
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def _rows_and_labels(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The class axis last, the others as rows, and int64 labels of the rows."""
    target = target.long()
    if input.ndim == 2:
        return input, target
    axis = 1 if input.ndim > 1 else 0
    order = [i for i in range(input.ndim) if i != axis]
    rows = input.permute(*order, axis).reshape(target.numel(), input.shape[axis])
    return rows, target.reshape(target.numel())


def _check_classes(kind: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    for name, t in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(t, Tensor) and not (name == "weight" and t is None):
            raise TypeError(f"{kind}: {name} must be a Tensor, got {type(t).__name__}")
    if not is_float(input.dtype):
        raise TypeError(f"{kind}: input must be floating logits, got {input.dtype.name}")
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"{kind}: target must hold integer labels, got {target.dtype.name}; for "
            "one-hot rows use target.argmax(1)"
        )
    if weight is not None and weight.dtype != input.dtype:
        raise TypeError(
            f"{kind}: weight is {weight.dtype.name}, input {input.dtype.name}; cast one"
        )
    expected = input.shape[:1] + input.shape[2:] if input.ndim > 1 else ()
    if input.ndim < 1 or target.shape != expected:
        raise ValueError(
            f"{kind}: for input {list(input.shape)} expected target {list(expected)}, "
            f"got {list(target.shape)}; input holds a score for each class on axis "
            f"{1 if input.ndim > 1 else 0}, target one label for each row"
        )


@in_float32
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)², reduced by "mean", "sum" or "none".

    The shapes must be equal: (N, 1) against (N,) would broadcast to (N, N), a silent mistake.
    """
    _check_float("mse_loss", {}, input=input, target=target)
    return losses.MSELoss.apply(input, target, reduction=reduction)


@in_float32
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, reduced by "mean", "sum" or "none"; the shapes must be equal."""
    _check_float("l1_loss", {}, input=input, target=target)
    check_mse(input, target, reduction, "l1_loss")
    loss = (input - target).abs()
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


@in_float32
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(target · log input + (1 - target) · log(1 - input)) · weight, the logs at least -100.

    input: probabilities, 0..1; target of the same shape; weight broadcasts to it. Raises ValueError
    for shapes that do not fit and probabilities out of range. The target takes no gradient.
    """
    _check_float("binary_cross_entropy", {"weight": weight}, input=input, target=target)
    _check_no_gradient("binary_cross_entropy", target)
    return losses.BCELoss.apply(input, target, weight, reduction=reduction)


@in_float32
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``binary_cross_entropy`` of sigmoid(input), for scores of any size; ``pos_weight`` multiplies
    the part of the positive targets. Both weights broadcast to input."""
    name = "binary_cross_entropy_with_logits"
    _check_float(name, {"weight": weight, "pos_weight": pos_weight}, input=input, target=target)
    _check_no_gradient(name, target)
    return losses.BCEWithLogits.apply(input, target, weight, pos_weight, reduction=reduction)


def _check_no_gradient(name: str, target: Tensor) -> None:
    if target.requires_grad:
        raise ValueError(
            f"{name}: the target requires a gradient, which is not computed; give target.detach()"
        )
