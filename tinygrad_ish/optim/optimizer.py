"""What optimizers share: groups of parameters, packing, state by parameter name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ..autograd import Array, enable_grad, recorder
from ..kernels import Backend
from ..nn.module import clear_grad
from ..tensor import Tensor
from .flat import Clock, Flat

NUMBERS = (int, float, np.floating)


class Optimizer:
    """The base of optimizers. ``params`` is an iterable of tensors, of (name, tensor) pairs
    (``model.named_parameters()``: state is then saved under these names), or of dicts
    ``{"params": …, "lr": …}``, each a group with settings of its own.

    Parameters move into one flat array per group, dtype and device when the optimizer is made: a
    NumPy array taken from one before that no longer follows it.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # the arrays of state that go with each parameter
    found_inf: Array | None = None  # the flag on the device that leaves a step out, if there is one

    param_groups: list[dict[str, Any]]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups = []
        self._params: dict[str, Tensor] = {}  # those of all groups, by name
        self._flats: list[list[Flat]] = []
        entries = self._listed(params)
        if not entries:
            raise ValueError(f"{self._kind}: got no parameters; pass model.parameters()")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _listed(self, params: Any) -> list[Any]:
        if isinstance(params, Tensor):
            return [params]
        if isinstance(params, (set, dict)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._kind}: expected parameters in an order that lasts, such as "
                f"model.parameters(), got {type(params).__name__}"
            )
        return list(params)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; what is not set is the default."""
        known = {"params", *self.defaults}
        if not isinstance(group, dict) or "params" not in group or set(group) - known:
            got = ", ".join(map(str, group)) if isinstance(group, dict) else type(group).__name__
            raise ValueError(
                f"{self._kind}: a group is a dict with params and any of "
                f"{', '.join(self.defaults)}; got {got}"
            )
        added = self._collect(self._listed(group["params"]))
        settings = {**self.defaults, **group, "params": list(added.values())}
        self._check(settings)
        self._flats.append(self._pack(added, settings["lr"]))
        self.param_groups.append(settings)
        self._params.update(added)

    def _collect(self, entries: list[Any]) -> dict[str, Tensor]:
        """Tensors or (name, tensor) pairs, checked, as tensors by name."""
        added: dict[str, Tensor] = {}
        seen = {id(p) for p in self._params.values()}
        for entry in entries:
            place = str(len(self._params) + len(added))
            name, p = entry if isinstance(entry, tuple) else (place, entry)
            if not isinstance(p, Tensor):
                raise TypeError(f"{self._kind}: expected tensors, got {type(p).__name__}")
            if p._node is not None:
                raise ValueError(
                    f"{self._kind}: parameter {name} is not a leaf but the result of "
                    f"{p._node.name}; pass the leaf itself"
                )
            if id(p) in seen:
                raise ValueError(f"{self._kind}: parameter {name} comes twice")
            if name in self._params or name in added:
                raise ValueError(f"{self._kind}: two parameters have the name {name}")
            seen.add(id(p))
            added[name] = p
        return added

    def _check(self, settings: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "momentum", "eps"):
            value = settings.get(name, 0.0)
            if not isinstance(value, NUMBERS) or not value >= 0:
                raise ValueError(
                    f"{self._kind}: {name} must be a number of 0 or more, got {value!r}"
                )

    def _pack(self, named: dict[str, Tensor], lr: float) -> list[Flat]:
        alike: dict[Any, dict[str, Tensor]] = {}
        for name, p in named.items():
            alike.setdefault((p.dtype, p.backend.name), {})[name] = p
        return [Flat(some, lr) for some in alike.values()]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient. ``closure``, if given, computes the loss
        and its gradients first; the loss is returned."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        by = recorder()
        if by is not None:
            by.depends(self._constants)
        for i, flats in enumerate(self._flats):
            if not all(flat.holds() for flat in flats):
                state = {n: s for flat in flats for n, s in flat.saved().items()}
                self._check_state(state)  # a parameter of another shape cannot take up its state
                self._repack(i, state)
        for flats in self._flats:  # every gradient is checked before anything changes
            for flat in flats:
                flat.gather()
        for group, flats in zip(self.param_groups, self._flats, strict=True):
            for flat in flats:
                for clock, span in flat.runs(group, self.found_inf):
                    self._update(flat.backend, flat, span, clock, group)
                flat.written(f"{self._kind}.step")
        if by is not None:  # who counts steps together has settled
            by.depends(lambda: [c for flats in self._flats for flat in flats for c in flat.clocks])
        return loss

    @contextlib.contextmanager
    def left_out_if(self, found_inf: Array) -> Iterator[None]:
        """Let steps inside this context change nothing where ``found_inf``, float64 () on the
        device, is not 0 when they run."""
        self.found_inf = found_inf
        try:
            yield
        finally:
            self.found_inf = None

    def _constants(self) -> list[Any]:
        """The settings that a recorded step cannot follow: all but the learning rate."""
        names = [name for name in self.defaults if name != "lr"]
        return [group[name] for group in self.param_groups for name in names]

    def _update(
        self, k: Backend, flat: Flat, span: slice, clock: Clock, group: dict[str, Any]
    ) -> None:
        """Run the kernel on a stretch; defined by each optimizer."""
        raise TypeError(f"{self._kind} defines no _update")

    def _repack(self, i: int, state: Mapping[str, Any]) -> None:
        """Pack a group anew, as when a parameter's memory was replaced, and restore its state."""
        group = self.param_groups[i]
        names = self._names(group)
        self._flats[i] = self._pack(dict(zip(names, group["params"], strict=True)), group["lr"])
        for flat in self._flats[i]:
            flat.restore(state, group["lr"])

    def _names(self, group: dict[str, Any]) -> list[str]:
        names = {id(p): name for name, p in self._params.items()}
        return [names[id(p)] for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters, or zero them."""
        for group in self.param_groups:
            for p in group["params"]:
                clear_grad(p, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state by parameter name, and the groups' settings with their parameters' names."""
        state = {n: s for flats in self._flats for flat in flats for n, s in flat.saved().items()}
        groups = [{**group, "params": self._names(group)} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave. Raises ValueError, before anything is written,
        for the state of another optimizer or of other parameters."""
        try:
            groups = [dict(group) for group in state_dict["param_groups"]]
            state = {name: dict(own) for name, own in state_dict["state"].items()}
            theirs = [list(group.pop("params")) for group in groups]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._misfit(f"it is not what state_dict() gives: {error!r}") from None
        ours = [self._names(group) for group in self.param_groups]
        if ours != theirs:
            raise self._misfit(
                f"the parameters differ: here {ours}, there {theirs}; make the optimizer from the "
                "same parameters, by the same names, in the same groups"
            )
        for group in groups:
            if not set(self.defaults) <= set(group):
                raise self._misfit(f"it sets {', '.join(group)}, not {', '.join(self.defaults)}")
            # a file gives tuples back as lists
            group.update({k: tuple(v) for k, v in group.items() if isinstance(v, list)})
            self._check(group)
        self._check_state(state)
        for i, group in enumerate(groups):
            self.param_groups[i].update(group)
            self._repack(i, state)

    def _check_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, own in state.items():
            if name not in self._params:
                raise self._misfit(f"there is no parameter {name}")
            step, kinds = own.get("step"), set(own) - {"step"}
            if isinstance(step, bool) or not isinstance(step, int) or step < 1:
                raise self._misfit(f"step of {name} must be an int of 1 or more, got {step!r}")
            if kinds and kinds != set(self.kinds):
                raise self._misfit(f"expected {list(self.kinds)} of {name}, got {sorted(kinds)}")
            for kind in kinds:
                shape = self._params[name].shape
                if not isinstance(own[kind], Tensor) or own[kind].shape != shape:
                    raise self._misfit(
                        f"{kind} of {name} must be a tensor of shape {list(shape)}, got "
                        f"{list(getattr(own[kind], 'shape', ())) or type(own[kind]).__name__}"
                    )

    def _misfit(self, what: str) -> ValueError:
        return ValueError(f"{self._kind}: the state does not fit: {what}")

    def __repr__(self) -> str:
        shown = []
        for i, group in enumerate(self.param_groups):
            settings = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            shown.append(f"  group {i}: {len(group['params'])} parameters, {settings}")
        return f"{self._kind}(\n" + "\n".join(shown) + "\n)"
