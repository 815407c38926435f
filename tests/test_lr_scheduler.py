"""Schedules of the learning rate: PyTorch's trajectories, state that goes on, messages."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import optim
from tinygrad_ish.optim import lr_scheduler as S

NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
STEPS = 100


def adam(T: Any) -> Any:
    """Two groups, so that each learning rate has a history of its own."""
    params = [T.tensor([1.0, 2.0], requires_grad=True) for _ in range(2)]
    return T.optim.Adam([{"params": params[:1], "lr": 0.4}, {"params": params[1:]}], lr=0.05)


def sgd(T: Any) -> Any:
    return T.optim.SGD([T.tensor([1.0], requires_grad=True)], lr=0.3, momentum=0.9)


def waves(epoch: int) -> float:
    return 1.5 + math.sin(epoch)


Make = Callable[[Any, Any], Any]  # a scheduler of S = lr_scheduler, ours or PyTorch's

MAKERS: dict[str, Make] = {
    "lambda": lambda S, o: S.LambdaLR(o, lambda epoch: 0.97**epoch),
    "lambdas": lambda S, o: S.LambdaLR(o, [waves, lambda epoch: 1 / (epoch + 1)]),
    "multiplicative": lambda S, o: S.MultiplicativeLR(o, lambda epoch: 0.9 + 0.1 * (epoch % 2)),
    "step": lambda S, o: S.StepLR(o, 7),
    "step gamma": lambda S, o: S.StepLR(o, step_size=1, gamma=0.9),
    "multi step": lambda S, o: S.MultiStepLR(o, [10, 40, 40, 70]),
    "multi step gamma": lambda S, o: S.MultiStepLR(o, milestones=[0, 3], gamma=0.5),
    "constant": lambda S, o: S.ConstantLR(o),
    "constant long": lambda S, o: S.ConstantLR(o, factor=0.2, total_iters=50),
    "linear": lambda S, o: S.LinearLR(o),
    "linear down": lambda S, o: S.LinearLR(o, 1.0, 0.1, 60),
    "linear to 0": lambda S, o: S.LinearLR(o, 0.5, end_factor=0.0, total_iters=20),
    "exponential": lambda S, o: S.ExponentialLR(o, 0.93),
    "polynomial": lambda S, o: S.PolynomialLR(o),
    "polynomial power": lambda S, o: S.PolynomialLR(o, total_iters=80, power=2.5),
    "cosine": lambda S, o: S.CosineAnnealingLR(o, 100),
    "cosine waves": lambda S, o: S.CosineAnnealingLR(o, T_max=13, eta_min=0.01),
    "cosine T_max 1": lambda S, o: S.CosineAnnealingLR(o, 1),
    "restarts": lambda S, o: S.CosineAnnealingWarmRestarts(o, 9, eta_min=0.001),
    "restarts longer": lambda S, o: S.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2),
    "one cycle": lambda S, o: S.OneCycleLR(o, 0.8, 100),
    "one cycle epochs": lambda S, o: S.OneCycleLR(o, 0.8, epochs=20, steps_per_epoch=6),
    "one cycle linear": lambda S, o: S.OneCycleLR(
        o, 0.1, 130, pct_start=0.2, anneal_strategy="linear", div_factor=5, final_div_factor=7
    ),
    "one cycle three": lambda S, o: S.OneCycleLR(o, 2.0, 100, three_phase=True, base_momentum=0.5),
    "one cycle alone": lambda S, o: S.OneCycleLR(o, 2.0, 100, cycle_momentum=False),
    "chained": lambda S, o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, gamma=0.9)]),
    "chained three": lambda S, o: S.ChainedScheduler(
        [S.LinearLR(o, total_iters=30), S.CosineAnnealingLR(o, 20, 0.002), S.StepLR(o, 30, 0.5)], o
    ),
    "sequential": lambda S, o: S.SequentialLR(
        o, [S.ConstantLR(o, factor=0.1, total_iters=20), S.ExponentialLR(o, gamma=0.9)], [20]
    ),
    "warm-up": lambda S, o: S.SequentialLR(
        o, [S.LinearLR(o, 0.01, total_iters=10), S.CosineAnnealingLR(o, 90)], milestones=[10]
    ),
    "sequential four": lambda S, o: S.SequentialLR(
        o,
        [
            S.PolynomialLR(o, 10),
            S.LambdaLR(o, waves),
            S.MultiplicativeLR(o, lambda epoch: 0.9),
            S.CosineAnnealingWarmRestarts(o, 4, 2),
        ],
        [13, 30, 71],
    ),
    "on top": lambda S, o: (S.StepLR(o, 50, 0.5), S.LinearLR(o, 0.2, total_iters=10))[1],
}
MANY = ("lambdas",)  # for optimizers of two groups


def optimizers(name: str) -> list[Callable[[Any], Any]]:
    return [adam] if name in MANY else [adam, sgd]


def settings(optimizer: Any) -> list[Any]:
    """What a schedule may write: lr, and momentum or betas."""
    return [
        [group["lr"], *(group["betas"] if "betas" in group else [group["momentum"]])]
        for group in optimizer.param_groups
    ]


def run(optimizer: Any, scheduler: Any, steps: int) -> list[Any]:
    trajectory = [settings(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        trajectory.append(settings(optimizer))
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    return trajectory


@pytest.mark.parametrize("name", MAKERS)
def test_trajectory_is_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    for make_optimizer in optimizers(name):
        runs = []
        for T in (tg, torch):
            optimizer = make_optimizer(T)
            scheduler = MAKERS[name](T.optim.lr_scheduler, optimizer)
            runs.append(run(optimizer, scheduler, STEPS))
        np.testing.assert_allclose(*runs, rtol=1e-11, atol=1e-15)


PLATEAU: dict[str, dict[str, Any]] = {
    "default": {},
    "impatient": {"patience": 1, "factor": 0.5},
    "cooldown": {"patience": 2, "factor": 0.7, "cooldown": 3},
    "max": {"mode": "max", "patience": 3, "factor": 0.9},
    "max abs": {"mode": "max", "patience": 3, "threshold_mode": "abs", "threshold": 0.2},
    "min abs": {"patience": 3, "threshold_mode": "abs", "threshold": 0.05, "min_lr": 0.01},
    "eps": {"patience": 0, "factor": 0.5, "eps": 0.01, "min_lr": [0.1, 0.0]},
}


@pytest.mark.parametrize("options", PLATEAU.values(), ids=PLATEAU)
def test_plateau_is_pytorchs(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    rng = np.random.default_rng(0)
    metrics = 1 + np.exp(-np.arange(STEPS) / 10) + 0.1 * rng.normal(size=STEPS)
    metrics[[20, 50]] = np.nan, np.inf
    runs = []
    for T in (tg, torch):
        optimizer = adam(T)
        scheduler = T.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        lrs = []
        for i, m in enumerate(metrics):
            scheduler.step(T.tensor(m) if i % 2 else m)
            lrs.append(scheduler.get_last_lr())
        runs.append(lrs)
    np.testing.assert_allclose(*runs, rtol=1e-12)


def test_restarts_between_epochs() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    runs = []
    for T in (tg, torch):
        optimizer = adam(T)
        scheduler = T.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2)
        lrs = []
        for i in range(STEPS):
            scheduler.step(i / 7)
            lrs.append([*scheduler.get_last_lr(), scheduler.last_epoch])
        for _ in range(5):
            scheduler.step()
            lrs.append([*scheduler.get_last_lr(), scheduler.last_epoch])
        runs.append(lrs)
    np.testing.assert_allclose(*runs, rtol=1e-11)


def test_a_learning_rate_set_by_hand_is_gone_on_from() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    runs = []
    for T in (tg, torch):
        optimizer = sgd(T)
        scheduler = T.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 0.01)
        first = run(optimizer, scheduler, 5)
        optimizer.param_groups[0]["lr"] = 0.123
        runs.append(first + run(optimizer, scheduler, 10))
    np.testing.assert_allclose(*runs, rtol=1e-12)


def test_the_step_uses_the_schedule() -> None:
    """The parameters themselves, with a momentum that cycles."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    for kind, options in (("SGD", {"momentum": 0.9}), ("AdamW", {})):
        ends = []
        for T in (tg, torch):
            p = T.tensor([1.0, -2.0], dtype=T.float64, requires_grad=True)
            optimizer = getattr(T.optim, kind)([p], lr=0.1, **options)
            scheduler = T.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 50)
            for _ in range(50):
                optimizer.zero_grad()
                (p * p).sum().backward()
                optimizer.step()
                scheduler.step()
            ends.append(p.detach().numpy())
        np.testing.assert_allclose(*ends, rtol=1e-9)


# --- state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MAKERS, "plateau"])
def test_goes_on_from_a_file(name: str, tmp_path: Path) -> None:
    def make() -> tuple[Any, Any]:
        optimizer = (adam if name in MANY else sgd)(tg)
        if name == "plateau":
            scheduler = S.ReduceLROnPlateau(optimizer, patience=2)
            return optimizer, scheduler
        return optimizer, MAKERS[name](S, optimizer)

    def go(optimizer: Any, scheduler: Any, steps: range) -> list[Any]:
        trajectory = []
        for step in steps:
            scheduler.step(*([np.cos(step)] if name == "plateau" else []))
            trajectory.append([settings(optimizer), scheduler.get_last_lr()])
        return trajectory

    optimizer, scheduler = make()
    go(optimizer, scheduler, range(33))
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    tg.save(state, tmp_path / "state.msgpack")
    expected = go(optimizer, scheduler, range(33, 60))

    optimizer, scheduler = make()
    go(optimizer, scheduler, range(3))
    carried = tg.load(tmp_path / "state.msgpack")
    optimizer.load_state_dict(carried["optimizer"])
    scheduler.load_state_dict(carried["scheduler"])
    assert go(optimizer, scheduler, range(33, 60)) == expected
    assert scheduler.optimizer is optimizer


def test_a_saved_state_is_a_copy() -> None:
    scheduler = MAKERS["warm-up"](S, sgd(tg))
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    scheduler.step()
    assert state == before != scheduler.state_dict()


def test_goes_on_from_last_epoch() -> None:
    optimizer = sgd(tg)
    scheduler = S.StepLR(optimizer, 3)
    run(optimizer, scheduler, 10)
    again = sgd(tg)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["initial_lr"] == 0.3
    rest = run(optimizer, scheduler, 10)
    # the scheduler is made for the epoch after last_epoch
    assert run(again, S.StepLR(again, 3, last_epoch=10), 9) == rest[1:]


def test_deepcopy_keeps_the_optimizer() -> None:
    optimizer = sgd(tg)
    twin, scheduler = copy.deepcopy((optimizer, S.StepLR(optimizer, 1)))
    scheduler.step()
    assert twin.param_groups[0]["lr"] == pytest.approx(0.03)
    assert optimizer.param_groups[0]["lr"] == 0.3


# --- mistakes --------------------------------------------------------------------------------

ONE, TWO = sgd(tg), adam(tg)

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: S.StepLR([1], 3), TypeError, "StepLR: expected an optimizer, got list"),
    (lambda: S.StepLR(ONE, 0), ValueError, "StepLR: step_size must be a number above 0, got 0"),
    (
        lambda: S.CosineAnnealingLR(ONE, -1),
        ValueError,
        "CosineAnnealingLR: T_max must be a number above 0, got -1",
    ),
    (
        lambda: S.StepLR(sgd(tg), 3, last_epoch=4),
        ValueError,
        "StepLR: to go on after epoch 4, group 0 needs initial_lr, its first learning rate; load "
        "the optimizer's state first",
    ),
    (
        lambda: S.LambdaLR(TWO, [waves]),
        ValueError,
        "LambdaLR: expected 2 functions, one for each group, got 1",
    ),
    (
        lambda: S.ConstantLR(ONE, factor=1.5),
        ValueError,
        "ConstantLR: factor must be between 0 and 1, got 1.5",
    ),
    (
        lambda: S.LinearLR(ONE, start_factor=0),
        ValueError,
        "LinearLR: start_factor must be above 0 and at most 1, got 0",
    ),
    (
        lambda: S.LinearLR(ONE, end_factor=2),
        ValueError,
        "LinearLR: end_factor must be between 0 and 1, got 2",
    ),
    (
        lambda: S.CosineAnnealingWarmRestarts(ONE, 1.5),
        ValueError,
        "CosineAnnealingWarmRestarts: T_0 must be an int of 1 or more, got 1.5",
    ),
    (
        lambda: S.CosineAnnealingWarmRestarts(sgd(tg), 3).step(-1),
        ValueError,
        "CosineAnnealingWarmRestarts: epoch must be a number of 0 or more, got -1",
    ),
    (
        lambda: S.OneCycleLR(ONE, 0.1),
        ValueError,
        "OneCycleLR: give total_steps, or both epochs and steps_per_epoch",
    ),
    (
        lambda: S.OneCycleLR(ONE, 0.1, 10, pct_start=3),
        ValueError,
        "OneCycleLR: pct_start must be between 0 and 1, got 3",
    ),
    (
        lambda: S.OneCycleLR(ONE, 0.1, 10, anneal_strategy="cosine"),
        ValueError,
        "OneCycleLR: anneal_strategy must be 'cos' or 'linear', got 'cosine'",
    ),
    (
        lambda: S.OneCycleLR(TWO, [0.1], 10),
        ValueError,
        "OneCycleLR: max_lr: expected 2 numbers, one for each group, got 1",
    ),
    (
        lambda: run(o := sgd(tg), S.OneCycleLR(o, 0.1, 10), 11),
        ValueError,
        "OneCycleLR: step 11 of 10: the cycle is over; make it with more total_steps",
    ),
    (
        lambda: S.SequentialLR(ONE, [S.StepLR(ONE, 1)], [3]),
        ValueError,
        "SequentialLR: 1 schedulers need 0 milestones between them, got 1",
    ),
    (
        lambda: S.SequentialLR(ONE, [S.StepLR(ONE, 1), S.StepLR(ONE, 1)], [0]),
        ValueError,
        "SequentialLR: milestones must increase from 1, got [0]",
    ),
    (
        lambda: S.SequentialLR(ONE, [S.StepLR(TWO, 1)], []),
        ValueError,
        "SequentialLR: scheduler 0 belongs to another optimizer",
    ),
    (
        lambda: S.ChainedScheduler([S.StepLR(ONE, 1), S.ReduceLROnPlateau(ONE)]),
        ValueError,
        "ChainedScheduler: scheduler 1 is a ReduceLROnPlateau, whose step needs a metric; step it "
        "by itself",
    ),
    (lambda: S.ChainedScheduler([]), ValueError, "ChainedScheduler: got no schedulers"),
    (
        lambda: S.ReduceLROnPlateau(ONE, factor=1.0),
        ValueError,
        "ReduceLROnPlateau: factor must be below 1, got 1.0",
    ),
    (
        lambda: S.ReduceLROnPlateau(ONE, "lowest"),
        ValueError,
        "ReduceLROnPlateau: mode must be 'min' or 'max', got 'lowest'",
    ),
    (
        lambda: S.ReduceLROnPlateau(ONE, threshold_mode="relative"),
        ValueError,
        "ReduceLROnPlateau: threshold_mode must be 'rel' or 'abs', got 'relative'",
    ),
    (
        lambda: S.ReduceLROnPlateau(TWO, min_lr=[0.1]),
        ValueError,
        "ReduceLROnPlateau: min_lr: expected 2 numbers, one for each group, got 1",
    ),
    (
        lambda: S.StepLR(sgd(tg), 1).load_state_dict(S.ExponentialLR(sgd(tg), 0.9).state_dict()),
        ValueError,
        "StepLR: the state does not fit: expected _last_lr, base_lrs, gamma, last_epoch, "
        "step_size, got _last_lr, base_lrs, gamma, last_epoch; load what a StepLR saved",
    ),
    (
        lambda: MAKERS["chained"](S, sgd(tg)).load_state_dict({}),
        ValueError,
        "ChainedScheduler: the state does not fit: expected that of 2 schedulers, got 0",
    ),
]


@pytest.mark.parametrize("call, error, message", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_messages(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_a_group_added_later_is_refused() -> None:
    optimizer = sgd(tg)
    scheduler = S.LambdaLR(optimizer, waves)
    optimizer.add_param_group({"params": tg.ones(2, requires_grad=True)})
    message = (
        "LambdaLR: the optimizer has 2 groups, the schedule is for 1; make the scheduler after"
    )
    with pytest.raises(ValueError, match=message):
        scheduler.step()


def test_an_optimizer_without_momentum() -> None:
    class Plain(optim.Optimizer):
        pass

    plain = Plain([tg.ones(2, requires_grad=True)], {"lr": 0.1})
    with pytest.raises(ValueError, match="Plain has neither momentum nor betas; give cycle_mom"):
        S.OneCycleLR(plain, 0.1, 10)
    assert S.OneCycleLR(plain, 0.1, 10, cycle_momentum=False).get_last_lr() == [0.1 / 25]
