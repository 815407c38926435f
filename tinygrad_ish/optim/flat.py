"""Parameters of one dtype and device in one flat array, so that one kernel call steps them all.

The parameters become views of the flat array; gradients are gathered into a second one, and each
kind of state (momentum, Adam's moments) is an array beside them. A parameter whose gradient is
None is left alone: the kernel runs over the stretches between such parameters, and each keeps a
step count of its own, as in PyTorch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..autograd import Array, on_host, recorder
from ..kernels import Backend
from ..tensor import Tensor


class Clock:
    """Learning rate and step count, as the float64 array that the ``*_step`` kernels read."""

    def __init__(self, backend: Backend, lr: float, step: float = 0) -> None:
        self.array = backend.asarray(np.array([lr, step], dtype=np.float64))
        self._lr = lr

    def follow(self, group: dict[str, Any]) -> None:
        """Write the group's learning rate, if it is another."""
        lr = group["lr"]
        if lr != self._lr:
            self.array[0] = self._lr = lr

    def step(self) -> float:
        """The steps counted so far."""
        return float(self.array[1])


class Flat:
    """The flat arrays of some parameters, of one dtype and backend."""

    def __init__(self, named: dict[str, Tensor], lr: float) -> None:
        self.names = list(named)
        self.params = list(named.values())
        self._shapes = [p.shape for p in self.params]
        self.backend = k = self.params[0].backend
        ends = list(itertools.accumulate(p.numel() for p in self.params))
        self.spans = list(zip([0, *ends], ends, strict=False))
        self.values = k.empty((ends[-1],), self.params[0].dtype)
        self.grads = k.empty((ends[-1],), self.params[0].dtype)
        self._views = [self._view(self.values, i) for i in range(len(named))]
        self._grad_views = [self._view(self.grads, i) for i in range(len(named))]
        self._state: dict[str, Array] = {}
        self._going: list[int] = []  # the parameters with a gradient in this step
        clock = Clock(k, lr)
        self.clocks = [clock] * len(named)
        for p, view in zip(self.params, self._views, strict=True):
            p._array = k.copy(p._array, out=view)

    def _view(self, flat: Array, i: int) -> Array:
        start, stop = self.spans[i]
        return flat[start:stop].reshape(self._shapes[i])

    def holds(self) -> bool:
        """Whether each parameter still is the view that was made of it."""
        return all(p._array is v for p, v in zip(self.params, self._views, strict=True))

    def state(self, kind: str) -> Array:
        """The flat array of one kind of state, zeros at first."""
        if kind not in self._state:
            self._state[kind] = self.backend.full(self.values.shape, 0, self.values.dtype)
        return self._state[kind]

    def gather(self) -> None:
        """Take in the gradients there are. Raises ValueError for one unlike its parameter."""
        self._going = [i for i, p in enumerate(self.params) if p.grad is not None]
        by = recorder()
        if by is not None:
            for p in self.params:
                by.saw(p)
        for i in self._going:
            p, grad, view = self.params[i], self.params[i].grad, self._grad_views[i]
            assert grad is not None
            g = grad._array
            if g.shape != view.shape or g.dtype != view.dtype or grad.backend is not p.backend:
                raise ValueError(
                    f"the gradient of {self.names[i]} must be {p.dtype.name}{list(p.shape)} on "
                    f"{p.backend.name}, got {grad.dtype.name}{list(grad.shape)} on "
                    f"{grad.backend.name}"
                )
            self.backend.copy(g, out=view)

    def runs(self, group: dict[str, Any], found_inf: Array | None) -> Iterator[tuple[Clock, slice]]:
        """Give each stretch of parameters with a gradient, its clock advanced (unless
        ``found_inf``) and set to the group's learning rate."""
        for clock in _distinct(self.clocks[i] for i in self._going):
            members = [i for i in self._going if self.clocks[i] is clock]
            if len(members) < self.clocks.count(clock):  # the others do not count this step
                clock = Clock(self.backend, group["lr"], clock.step())
                for i in members:
                    self.clocks[i] = clock
            on_host(functools.partial(clock.follow, group), (clock.array,))
            self.backend.count_step(clock.array, found_inf)
            for stretch in _stretches(members):
                yield clock, slice(self.spans[stretch[0]][0], self.spans[stretch[-1]][1])

    def written(self, writer: str) -> None:
        """Note that the parameters with a gradient have changed."""
        for i in self._going:
            self.params[i]._version.bump(writer)

    def saved(self) -> dict[str, dict[str, Any]]:
        """The state by parameter name: "step", and a tensor for each kind."""
        out = {}
        for i, name in enumerate(self.names):
            step = self.clocks[i].step()
            if step:
                copies = {
                    kind: Tensor(self.backend.copy(self._view(flat, i)), self.backend)
                    for kind, flat in self._state.items()
                }
                out[name] = {"step": int(step), **copies}
        return out

    def restore(self, state: Mapping[str, Mapping[str, Any]], lr: float) -> None:
        """Take up what ``saved`` gave; parameters that it does not name start anew."""
        clocks: dict[int, Clock] = {}
        for i, name in enumerate(self.names):
            own = state.get(name, {"step": 0})
            step = int(own["step"])
            self.clocks[i] = clocks.setdefault(step, Clock(self.backend, lr, step))
            for kind, value in own.items():
                if kind != "step":
                    view = self._view(self.state(kind), i)
                    moved = value.to(self.backend).to(view.dtype)
                    self.backend.copy(moved._array, out=view)


def _distinct(clocks: Iterator[Clock]) -> list[Clock]:
    return list({id(c): c for c in clocks}.values())


def _stretches(indices: list[int]) -> Iterator[list[int]]:
    """Runs of neighbours: [0, 1, 3] gives [0, 1] and [3]."""
    for _, run in itertools.groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        yield [i for _, i in run]
