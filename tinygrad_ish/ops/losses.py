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
