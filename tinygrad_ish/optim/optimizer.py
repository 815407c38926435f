"""What optimizers share: groups of parameters, packing, state by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..autograd import enable_grad
from ..kernels import Backend
from ..nn.module import clear_grad
from ..tensor import Tensor
from .flat import Clock, Flat


class Optimizer:
    """The base of optimizers. ``params`` is an iterable of tensors, of (name, tensor) pairs
    (``model.named_parameters()``: state is then saved under these names), or of dicts
    ``{"params": …, "lr": …}``, each a group with settings of its own.

    Parameters move into one flat array per group, dtype and device when the optimizer is made: a
    NumPy array taken from one before that no longer follows it.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups = []
        self._names: dict[int, str] = {}
        self._flats: list[list[Flat]] = []
        entries = list(params) if not isinstance(params, Tensor) else [params]
        if not entries:
            raise ValueError(f"{self._kind}: got no parameters; pass model.parameters()")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        for group in groups:
            self.add_param_group(group)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; what is not set is the default."""
        unknown = set(group) - {"params"} - set(self.defaults)
        if unknown:
            raise ValueError(
                f"{self._kind}: unknown setting {', '.join(sorted(unknown))}; known are "
                f"{', '.join(self.defaults)}"
            )
        entries = group["params"]
        entries = [entries] if isinstance(entries, Tensor) else list(entries)
        params = [self._register(entry) for entry in entries]
        settings = {**self.defaults, **group, "params": params}
        self._check(settings)
        self.param_groups.append(settings)
        self._flats.append(self._pack(settings))

    def _register(self, entry: Any) -> Tensor:
        name, p = entry if isinstance(entry, tuple) else (str(len(self._names)), entry)
        if not isinstance(p, Tensor):
            raise TypeError(f"{self._kind}: expected tensors as parameters, got {type(p).__name__}")
        if p._node is not None:
            raise ValueError(f"{self._kind}: parameter {name} is not a leaf; pass the leaf itself")
        if id(p) in self._names or name in self._names.values():
            raise ValueError(f"{self._kind}: parameter {name} comes twice")
        self._names[id(p)] = name
        return p

    def _check(self, settings: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "momentum", "eps"):
            value = settings.get(name, 0.0)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(
                    f"{self._kind}: {name} must be a number of 0 or more, got {value!r}"
                )

    def _pack(self, group: dict[str, Any]) -> list[Flat]:
        alike: dict[Any, list[tuple[str, Tensor]]] = {}
        for p in group["params"]:
            alike.setdefault((p.dtype, p.backend.name), []).append((self._names[id(p)], p))
        return [Flat(named, group["lr"]) for named in alike.values()]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient. ``closure``, if given, computes the loss
        and its gradients first; the loss is returned."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for i, group in enumerate(self.param_groups):
            if not all(flat.holds() for flat in self._flats[i]):
                self._repack(i)
            for flat in self._flats[i]:
                for clock, span in flat.runs(group["lr"]):
                    self._update(flat.backend, flat, span, clock, group)
                flat.written(f"{self._kind}.step")
        return loss

    def _update(
        self, k: Backend, flat: Flat, span: slice, clock: Clock, group: dict[str, Any]
    ) -> None:
        """Run the kernel on a stretch; defined by each optimizer."""
        raise TypeError(f"{self._kind} defines no _update")

    def _repack(self, i: int) -> None:
        """Pack anew after a parameter's memory was replaced, keeping the state."""
        group = self.param_groups[i]
        state = {n: s for flat in self._flats[i] for n, s in flat.saved().items()}
        self._flats[i] = self._pack(group)
        for flat in self._flats[i]:
            flat.restore(state, group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters, or zero them."""
        for group in self.param_groups:
            for p in group["params"]:
                clear_grad(p, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state by parameter name, and the groups' settings with their parameters' names."""
        state = {n: s for flats in self._flats for flat in flats for n, s in flat.saved().items()}
        groups = [
            {**group, "params": [self._names[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave. Names and shapes are checked before anything is
        written; raises ValueError if they differ."""
        groups, state = state_dict["param_groups"], state_dict["state"]
        own = [[self._names[id(p)] for p in group["params"]] for group in self.param_groups]
        theirs = [list(group["params"]) for group in groups]
        if own != theirs:
            raise ValueError(
                f"{self._kind}.load_state_dict: the parameters differ: here {own}, in the file "
                f"{theirs}; make the optimizer from the same model.named_parameters()"
            )
        self._check_state(state)
        for i, (group, saved) in enumerate(zip(self.param_groups, groups, strict=True)):
            group.update({name: v for name, v in saved.items() if name != "params"})
            self._flats[i] = self._pack(group)
            for flat in self._flats[i]:
                flat.restore(state, group["lr"])

    def _check_state(self, state: dict[str, Any]) -> None:
        shapes = {self._names[id(p)]: p.shape for g in self.param_groups for p in g["params"]}
        for name, own in state.items():
            for kind, value in own.items():
                if kind != "step" and value.shape != shapes.get(name):
                    raise ValueError(
                        f"{self._kind}.load_state_dict: {kind} of {name} must have shape "
                        f"{list(shapes.get(name, ()))}, got {list(value.shape)}"
                    )

    def __repr__(self) -> str:
        shown = []
        for i, group in enumerate(self.param_groups):
            settings = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            shown.append(f"  group {i}: {len(group['params'])} parameters, {settings}")
        return f"{self._kind}(\n" + "\n".join(shown) + "\n)"


