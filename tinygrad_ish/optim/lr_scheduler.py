"""Schedules of the learning rate, with PyTorch's names and trajectories.

A scheduler writes "lr" into the optimizer's groups: once when it is made (epoch 0), then at each
``step``, which is called after the optimizer's, once an epoch or once a batch.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ..autograd import on_replay
from .optimizer import Optimizer

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
    "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR",
    "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip


class LRScheduler:
    """The base of schedulers. A subclass defines ``get_lr``: the groups' learning rates at epoch
    ``last_epoch``, from ``base_lrs``, those they began with, or from the present ones.

    ``last_epoch`` is -1 for a fresh start; to go on after an epoch, give its number to a scheduler
    of the optimizer that was loaded (its groups hold "initial_lr"), or use ``load_state_dict``.
    """

    unsaved: ClassVar[tuple[str, ...]] = ("optimizer",)  # attributes that are no state

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._attach(optimizer, last_epoch)
        self.step()

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _attach(self, optimizer: Optimizer, last_epoch: int) -> None:
        self._check_optimizer(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{self._kind}: to go on after epoch {last_epoch}, group {i} needs "
                    "initial_lr, its first learning rate; load the optimizer's state first"
                )
        self.optimizer = optimizer
        self.last_epoch = last_epoch
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self._last_lr = self._present()

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{self._kind}: expected an optimizer, got {type(optimizer).__name__}")

    def _present(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float]:
        """The learning rate of each group at ``last_epoch``; defined by each scheduler."""
        raise TypeError(f"{self._kind} defines no get_lr")

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group after the last step."""
        return list(self._last_lr)

    @on_replay
    def step(self) -> None:
        """Go to the next epoch: write its learning rates into the optimizer's groups."""
        self._advance()
        self._last_lr = self._present()

    def _advance(self) -> None:
        self.last_epoch += 1
        self._write(self.get_lr())

    def _write(self, lrs: Sequence[float]) -> None:
        groups = self.optimizer.param_groups
        if len(lrs) != len(groups):
            raise ValueError(
                f"{self._kind}: the optimizer has {len(groups)} groups, the schedule is for "
                f"{len(lrs)}; make the scheduler after add_param_group"
            )
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr

    def _begin(self) -> None:
        """Go to epoch 0 from the initial learning rates."""
        self._write(self.base_lrs)
        self._rewind()
        self.step()

    def _take_over(self) -> None:
        """Go to epoch 0 from another scheduler's end: a sequence has come to this one."""
        self._begin()

    def _rewind(self) -> None:
        self.last_epoch = -1

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and the caller's functions, as numbers and lists."""
        own = {name: value for name, value in vars(self).items() if name not in self.unsaved}
        return copy.deepcopy(own)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; the learning rates themselves are loaded with the
        optimizer. Raises ValueError for the state of another kind of scheduler."""
        names = [name for name in vars(self) if name not in self.unsaved]
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(names):
            got = state_dict if isinstance(state_dict, Mapping) else [type(state_dict).__name__]
            raise ValueError(
                f"{self._kind}: the state does not fit: expected {', '.join(sorted(names))}, got "
                f"{', '.join(sorted(map(str, got)))}; load what a {self._kind} saved"
            )
        vars(self).update(copy.deepcopy(dict(state_dict)))

    def _check_positive(self, **numbers: float) -> None:
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{self._kind}: {name} must be a number above 0, got {value!r}")

    def _each(self, name: str, value: float | Sequence[float], groups: int) -> list[float]:
        values = list(value) if isinstance(value, Sequence) else [value] * groups
        if len(values) != groups:
            raise ValueError(
                f"{self._kind}: {name}: expected {groups} numbers, one for each group, got "
                f"{len(values)}"
            )
        return values


# --- given by the caller ---------------------------------------------------------------------

Rule = Callable[[int], float]


class LambdaLR(LRScheduler):
    """initial lr · λ(epoch); one function, or one for each group. Functions are not saved."""

    unsaved = ("optimizer", "lr_lambdas")

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Rule | Sequence[Rule], last_epoch: int = -1
    ) -> None:
        self._check_optimizer(optimizer)
        many = isinstance(lr_lambda, (list, tuple))
        groups = len(optimizer.param_groups)
        self.lr_lambdas: list[Rule] = list(lr_lambda) if many else [lr_lambda] * groups  # type: ignore[arg-type, list-item]
        if len(self.lr_lambdas) != groups:
            raise ValueError(
                f"{self._kind}: expected {groups} functions, one for each group, got "
                f"{len(self.lr_lambdas)}"
            )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [
            base * rule(self.last_epoch)
            for base, rule in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]


class MultiplicativeLR(LambdaLR):
    """The present lr · λ(epoch), from epoch 1 on."""

    def get_lr(self) -> list[float]:
        if self.last_epoch <= 0:
            return self._present()
        return [
            lr * rule(self.last_epoch)
            for lr, rule in zip(self._present(), self.lr_lambdas, strict=True)
        ]

    def _take_over(self) -> None:  # from the present lr, and λ(0) counts
        self.last_epoch = 0
        self._write(
            [lr * rule(0) for lr, rule in zip(self._present(), self.lr_lambdas, strict=True)]
        )
        self._last_lr = self._present()


# --- a factor of the initial learning rate -----------------------------------------------------


class _Scaled(LRScheduler):
    """lr = η + (initial lr - η) · f(epoch), with f from ``_factor`` and η = ``eta_min``.

    A step multiplies the present lr - η by f(epoch) / f(epoch - 1): so two schedulers can act on
    one optimizer, and a learning rate set by hand is gone on from.
    """

    eta_min = 0.0

    def _factor(self, epoch: int) -> float:
        raise TypeError(f"{self._kind} defines no _factor")

    def get_lr(self) -> list[float]:
        low, now = self.eta_min, self._factor(self.last_epoch)
        before = self._factor(self.last_epoch - 1) if self.last_epoch > 0 else 1.0
        if now == before:
            return self._present()
        if before == 0:
            rows = zip(self._present(), self.base_lrs, strict=True)
            return [lr + (base - low) * now for lr, base in rows]
        return [low + (lr - low) * (now / before) for lr in self._present()]


class StepLR(_Scaled):
    """× ``gamma`` every ``step_size`` epochs."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self._check_positive(step_size=step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma ** (epoch // self.step_size)


class MultiStepLR(_Scaled):
    """× ``gamma`` at each of the ``milestones``."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma ** bisect_right(self.milestones, epoch)


class ConstantLR(_Scaled):
    """× ``factor`` until epoch ``total_iters``, then the initial lr."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"ConstantLR: factor must be between 0 and 1, got {factor!r}")
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.factor if epoch < self.total_iters else 1.0


class LinearLR(_Scaled):
    """From × ``start_factor`` in a line to × ``end_factor`` at epoch ``total_iters``."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ValueError(
                f"LinearLR: start_factor must be above 0 and at most 1, got {start_factor!r}"
            )
        if not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: end_factor must be between 0 and 1, got {end_factor!r}")
        self._check_positive(total_iters=total_iters)
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * done


class ExponentialLR(_Scaled):
    """× ``gamma`` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma**epoch


class PolynomialLR(_Scaled):
    """× (1 - epoch / ``total_iters``) to the ``power``; 0 from ``total_iters`` on."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self._check_positive(total_iters=total_iters)
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return (1.0 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(_Scaled):
    """Down to ``eta_min`` at epoch ``T_max`` along half a cosine, then up again likewise.

    Loshchilov and Hutter, "SGDR", 2017, without the restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self._check_positive(T_max=T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        phase = epoch % (2 * self.T_max)
        return 0.0 if phase == self.T_max else (1 + math.cos(math.pi * phase / self.T_max)) / 2


# --- cycles ----------------------------------------------------------------------------------


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from the initial lr down to ``eta_min``, over and over: the first takes
    ``T_0`` epochs, each next one ``T_mult`` times as many (Loshchilov and Hutter, 2017).

    ``step(epoch + i / batches)`` sets the place itself, for steps within an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        for name, n in (("T_0", T_0), ("T_mult", T_mult)):
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ValueError(f"{self._kind}: {name} must be an int of 1 or more, got {n!r}")
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        self._epoch: float = last_epoch
        super().__init__(optimizer, last_epoch)

    @on_replay
    def step(self, epoch: float | None = None) -> None:
        """Go to the next epoch, or to this one, which may lie between two."""
        if epoch is not None and not epoch >= 0:
            raise ValueError(f"{self._kind}: epoch must be a number of 0 or more, got {epoch!r}")
        self._epoch = self._epoch + 1 if epoch is None else epoch
        self.last_epoch = math.floor(self._epoch) - 1
        super().step()

    def _rewind(self) -> None:
        self._epoch = self.last_epoch = -1

    def get_lr(self) -> list[float]:
        done, length = self._epoch, self.T_0
        if self.T_mult == 1:
            done %= length
        while done >= length:
            done -= length
            length *= self.T_mult
        share = (1 + math.cos(math.pi * done / length)) / 2
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]


class OneCycleLR(LRScheduler):
    """Up from max_lr / ``div_factor`` to ``max_lr`` over the share ``pct_start`` of the steps,
    then down to 1 / ``final_div_factor`` of the first (Smith and Topin, "Super-convergence", 2018).

    The number of steps is ``total_steps``, or ``epochs`` · ``steps_per_epoch``; ``step`` is called
    after every batch, and one call more than that raises ValueError. With ``cycle_momentum`` the
    momentum (SGD's, or Adam's β₁) goes the other way, between ``max_momentum`` and
    ``base_momentum``. With ``three_phase`` the way up is gone down as long, then the rest.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self._check_optimizer(optimizer)
        self.total_steps = self._count(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start must be between 0 and 1, got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}"
            )
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError(
                f"OneCycleLR: {type(optimizer).__name__} has neither momentum nor betas; give "
                "cycle_momentum=False"
            )
        self.pct_start, self.three_phase = pct_start, three_phase
        self.anneal_strategy, self.cycle_momentum = anneal_strategy, cycle_momentum
        groups = optimizer.param_groups
        self.max_lrs = self._each("max_lr", max_lr, len(groups))
        first = [lr / div_factor for lr in self.max_lrs]
        self.min_lrs = [lr / final_div_factor for lr in first]
        self.base_momenta = self._each("base_momentum", base_momentum, len(groups))
        self.max_momenta = self._each("max_momentum", max_momentum, len(groups))
        for group, lr in zip(groups, first, strict=True):
            group["initial_lr"] = lr
        super().__init__(optimizer, last_epoch)

    def _count(self, total: int | None, epochs: int | None, per_epoch: int | None) -> int:
        if total is None and (epochs is None or per_epoch is None):
            raise ValueError("OneCycleLR: give total_steps, or both epochs and steps_per_epoch")
        if total is None:
            assert epochs is not None and per_epoch is not None
            self._check_positive(epochs=epochs, steps_per_epoch=per_epoch)
            return epochs * per_epoch
        self._check_positive(total_steps=total)
        return total

    def _place(self) -> tuple[int, float]:
        """The phase of this step, and how much of it is done: 0 at its start, 1 at its end."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {self.last_epoch} of {self.total_steps}: the cycle is over; "
                "make it with more total_steps"
            )
        ends = [self.pct_start * self.total_steps - 1, self.total_steps - 1]
        if self.three_phase:
            ends.insert(1, 2 * self.pct_start * self.total_steps - 2)
        start = 0.0
        for phase, end in enumerate(ends):
            if self.last_epoch <= end or phase == len(ends) - 1:
                return phase, (self.last_epoch - start) / (end - start) if end != start else 1.0
            start = end
        raise AssertionError("the last phase takes every step")

    def _between(self, turns: list[tuple[float, ...]]) -> list[float]:
        """A value for each group, between the turning points that its phase begins and ends at."""
        phase, done = self._place()
        if self.anneal_strategy == "cos":
            done = (1 - math.cos(math.pi * done)) / 2
        return [t[phase] + (t[phase + 1] - t[phase]) * done for t in turns]

    def get_lr(self) -> list[float]:
        rows = zip(self.base_lrs, self.max_lrs, self.min_lrs, strict=True)
        return self._between([(a, b, a, c) if self.three_phase else (a, b, c) for a, b, c in rows])

    def _advance(self) -> None:
        super()._advance()
        if not self.cycle_momentum:
            return
        turns: list[tuple[float, ...]] = [
            (high, low, high, high)
            for low, high in zip(self.base_momenta, self.max_momenta, strict=True)
        ]
        values = self._between(turns)
        for group, momentum in zip(self.optimizer.param_groups, values, strict=True):
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


# --- of other schedulers -----------------------------------------------------------------------


class _Combined(LRScheduler):
    """What schedulers of schedulers share."""

    unsaved = ("optimizer", "_schedulers")

    _schedulers: list[LRScheduler]

    def _check_schedulers(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer) -> None:
        for i, scheduler in enumerate(schedulers):
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{self._kind}: scheduler {i} is a ReduceLROnPlateau, whose step needs a "
                    "metric; step it by itself"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"{self._kind}: scheduler {i} belongs to another optimizer")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        own = dict(state_dict)
        states = own.pop("_schedulers", [])
        if len(states) != len(self._schedulers):
            raise ValueError(
                f"{self._kind}: the state does not fit: expected that of {len(self._schedulers)} "
                f"schedulers, got {len(states)}"
            )
        super().load_state_dict(own)
        for scheduler, state in zip(self._schedulers, states, strict=True):
            scheduler.load_state_dict(state)


class SequentialLR(_Combined):
    """One scheduler after the other; ``milestones`` are the epochs at which the next one begins,
    at its epoch 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self._check_optimizer(optimizer)
        self._check_schedulers(schedulers, optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedulers need {len(schedulers) - 1} "
                f"milestones between them, got {len(milestones)}"
            )
        if any(a >= b for a, b in zip([0, *milestones], milestones, strict=False)):
            raise ValueError(f"SequentialLR: milestones must increase from 1, got {milestones!r}")
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        super().__init__(optimizer, last_epoch)

    def _advance(self) -> None:
        self.last_epoch += 1
        at = bisect_right(self._milestones, self.last_epoch)
        if self.last_epoch == 0:
            self._schedulers[0]._begin()
        elif at and self.last_epoch == self._milestones[at - 1]:
            self._schedulers[at]._take_over()
        else:
            self._schedulers[at].step()


class ChainedScheduler(_Combined):
    """Several schedulers at once, each stepped in turn."""

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        if not schedulers:
            raise ValueError("ChainedScheduler: got no schedulers")
        optimizer = optimizer or schedulers[0].optimizer
        self._check_schedulers(schedulers, optimizer)
        self._schedulers = list(schedulers)
        self._attach(optimizer, -1)  # each has taken its first step already
        self.last_epoch = 0

    def _advance(self) -> None:
        self.last_epoch += 1
        for scheduler in self._schedulers:
            scheduler.step()

    def _rewind(self) -> None:
        super()._rewind()
        for scheduler in self._schedulers:
            scheduler._rewind()


# --- by a metric -----------------------------------------------------------------------------


class ReduceLROnPlateau(LRScheduler):
    """× ``factor`` when the metric given to ``step`` has not become better for more than
    ``patience`` epochs.

    Better is lower for ``mode`` "min", higher for "max", by more than ``threshold``: a share of the
    best for ``threshold_mode`` "rel", a difference for "abs". After a change, ``cooldown`` epochs
    do not count. Learning rates stay at ``min_lr`` (a number, or one for each group) or above, and
    changes of at most ``eps`` are left.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        self._check_optimizer(optimizer)
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be below 1, got {factor!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceLROnPlateau: threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}"
            )
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.min_lrs = self._each("min_lr", min_lr, len(optimizer.param_groups))
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0
        self.optimizer = optimizer
        self._last_lr = self._present()

    @on_replay
    def step(self, metrics: Any) -> None:  # type: ignore[override]
        """Take in the metric of an epoch, a number or a tensor of one element."""
        value = float(metrics)
        self.last_epoch += 1
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._write(self.get_lr())
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self._present()

    def get_lr(self) -> list[float]:
        """The learning rates after a reduction."""
        reduced = []
        for lr, least in zip(self._present(), self.min_lrs, strict=True):
            new = max(lr * self.factor, least)
            reduced.append(new if lr - new > self.eps else lr)
        return reduced

    def _is_better(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold
