"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..kernels import Backend
from .flat import Clock, Flat
from .optimizer import Optimizer


class SGD(Optimizer):
    """SGD with momentum, Nesterov's form of it, and L2 weight decay; the formula stands at the
    kernel ``sgd_step``."""

    kinds = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum above 0 and a dampening of 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _update(
        self, k: Backend, flat: Flat, span: slice, clock: Clock, group: dict[str, Any]
    ) -> None:
        k.sgd_step(
            flat.values[span],
            flat.grads[span],
            flat.state("momentum_buffer")[span] if group["momentum"] else None,
            clock.array,
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            self.found_inf,
        )
