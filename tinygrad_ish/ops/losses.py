"""Losses whose kernel gives the value and the gradient in one pass."""

from __future__ import annotations

from typing import Any

from ..autograd import Array, Function


class SoftmaxCrossEntropy(Function):
    """The cross-entropy of softmax(logits) with integer labels. logits (N, C), labels (N,)."""

    def forward(
        ctx,
        logits: Array,
        labels: Array,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
    ) -> Array:
        loss, dlogits = ctx.k.softmax_cross_entropy(
            logits, labels, weight, ignore_index, label_smoothing, reduction
        )
        ctx.save(dlogits)
        return loss

    def backward(ctx, g: Array) -> Any:
        (dlogits,) = ctx.saved
        scale = ctx.k.reshape(g, (*g.shape, 1)) if g.ndim else g
        return ctx.k.mul(dlogits, scale), None, None


class NLLLoss(Function):
    """-logp at integer labels. logp (N, C), labels (N,)."""

    def forward(
        ctx, logp: Array, labels: Array, weight: Array | None, ignore_index: int, reduction: str
    ) -> Array:
        loss, dlogp = ctx.k.nll_loss(logp, labels, weight, ignore_index, reduction)
        ctx.save(dlogp)
        return loss

    def backward(ctx, g: Array) -> Any:
        (dlogp,) = ctx.saved
        scale = ctx.k.reshape(g, (*g.shape, 1)) if g.ndim else g
        return ctx.k.mul(dlogp, scale), None, None


class MSELoss(Function):
    """(input - target)² of equal shapes."""

    def forward(ctx, input: Array, target: Array, reduction: str) -> Array:
        loss, dinput = ctx.k.mse_loss(input, target, reduction)
        ctx.save(dinput)
        return loss

    def backward(ctx, g: Array) -> Any:
        (dinput,) = ctx.saved
        d = ctx.k.mul(dinput, g)
        return d, ctx.k.neg(d) if ctx.needs[1] else None


class BCELoss(Function):
    """The cross-entropy of probabilities with targets of their shape."""

    def forward(ctx, input: Array, target: Array, weight: Array | None, reduction: str) -> Array:
        loss, dinput = ctx.k.bce_loss(input, target, weight, reduction)
        ctx.save(dinput)
        return loss

    def backward(ctx, g: Array) -> Any:
        (dinput,) = ctx.saved
        return ctx.k.mul(dinput, g), None, None


class BCEWithLogits(Function):
    """The cross-entropy of sigmoid(input) with targets of its shape."""

    def forward(
        ctx,
        input: Array,
        target: Array,
        weight: Array | None,
        pos_weight: Array | None,
        reduction: str,
    ) -> Array:
        loss, dinput = ctx.k.bce_with_logits(input, target, weight, pos_weight, reduction)
        ctx.save(dinput)
        return loss

    def backward(ctx, g: Array) -> Any:
        (dinput,) = ctx.saved
        return ctx.k.mul(dinput, g), None, None, None
