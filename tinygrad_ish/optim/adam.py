"""Adam (Kingma and Ba, 2015)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from ..kernels import Backend
from .flat import Clock, Flat
from .optimizer import NUMBERS, Optimizer


class Adam(Optimizer):
    """Adam with L2 weight decay; the formula stands at the kernel ``adam_step``."""

    kinds = ("exp_avg", "exp_avg_sq")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check(settings)
        betas = settings["betas"]
        pair = isinstance(betas, (tuple, list)) and len(betas) == 2
        if not pair or not all(isinstance(b, NUMBERS) and 0 <= b < 1 for b in betas):
            raise ValueError(f"{self._kind}: betas must be two numbers in [0, 1), got {betas!r}")

    def _update(
        self, k: Backend, flat: Flat, span: slice, clock: Clock, group: dict[str, Any]
    ) -> None:
        k.adam_step(
            flat.values[span],
            flat.grads[span],
            flat.state("exp_avg")[span],
            flat.state("exp_avg_sq")[span],
            clock.array,
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            self.decoupled,
            self.found_inf,
        )
