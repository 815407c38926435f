"""What a layer is: parameters and layers inside it, found by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .. import dtypes
from ..autograd import no_grad, recorder
from ..tensor import Tensor, as_tensor, empty

_REGISTRIES = ("_parameters", "_modules", "_buffers")


class Parameter(Tensor):
    """A tensor that a Module registers as its parameter; it requires a gradient."""

    __slots__ = ()

    def __init__(self, data: Tensor, requires_grad: bool = True) -> None:
        if not isinstance(data, Tensor):
            raise TypeError(f"Parameter: expected a Tensor, got {type(data).__name__}")
        super().__init__(data._array, data.backend)
        self._version = data._version
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class LoadResult(NamedTuple):
    """The keys that ``load_state_dict(strict=False)`` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of layers and models. Define ``__init__`` (call ``super().__init__()`` first) and
    ``forward``; Parameters and Modules set as attributes are registered under their names."""

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]

    def __init__(self) -> None:
        for name in _REGISTRIES:
            object.__setattr__(self, name, {})
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes; defined by each subclass."""
        raise TypeError(f"{type(self).__name__} defines no forward(self, ...)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        by = recorder()
        if by is not None:
            by.entered(self)
        return self.forward(*args, **kwargs)

    # --- registration ------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        home = self._home_of(name, value)
        if home is None:
            object.__setattr__(self, name, value)
            return
        for other in (vars(self), *(vars(self)[registry] for registry in _REGISTRIES)):
            if other is not home:
                other.pop(name, None)
        home[name] = value

    def _home_of(self, name: str, value: Any) -> dict[str, Any] | None:
        """The registry that the attribute belongs to; None for a plain one."""
        for registry, kind in zip(_REGISTRIES, (Parameter, Module, Tensor), strict=True):
            registers = isinstance(value, kind) and kind is not Tensor
            if registers or name in vars(self).get(registry, ()):
                self._check_kind(name, value, kind)
                return getattr(self, registry)
        return None

    def _check_kind(self, name: str, value: Any, kind: type) -> None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{type(self).__name__}: {name!r} must be a {kind.__name__} or None, got "
                f"{type(value).__name__}"
            )

    def __getattr__(self, name: str) -> Any:
        if name in _REGISTRIES:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before setting parameters, "
                "buffers and modules"
            )
        for registry in _REGISTRIES:
            found = vars(self).get(registry, {})
            if name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self._parameters, *self._buffers, *self._modules]

    def __delattr__(self, name: str) -> None:
        for registry in _REGISTRIES:
            if name in getattr(self, registry):
                del getattr(self, registry)[name]
                return
        object.__delattr__(self, name)

    def _register(self, home: dict[str, Any], name: str, value: Any, kind: type) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"{type(self).__name__}: a name is a string without dots, got {name!r}"
            )
        if name not in home and hasattr(self, name):
            raise ValueError(f"{type(self).__name__} has an attribute {name!r} already")
        self._check_kind(name, value, kind)
        home[name] = value

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Register a tensor that is saved and moved with the module but not trained."""
        self._register(self._buffers, name, tensor, Tensor)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Register a parameter; None keeps the name for later."""
        self._register(self._parameters, name, param, Parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Register a module."""
        self._register(self._modules, name, module, Module)

    # --- walking -----------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with their dotted names."""
        seen: set[int] = set()
        stack = [(prefix, self)]
        while stack:
            name, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            below = [(_join(name, n), m) for n, m in module._modules.items() if m is not None]
            stack += reversed(below)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (m for _, m in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside, each once, with their names."""
        return _once(self._modules.items())

    def children(self) -> Iterator[Module]:
        """The modules directly inside, each once."""
        return (m for _, m in self.named_children())

    def _named(self, registry: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        modules = self.named_modules(prefix) if recurse else [(prefix, self)]
        return _once(
            (_join(at, n), t) for at, m in modules for n, t in getattr(m, registry).items()
        )

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters (without ``recurse`` this module's own), each once, with their names."""
        return self._named("_parameters", prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters (without ``recurse`` this module's own), each once."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers (without ``recurse`` this module's own), each once, with their names."""
        return self._named("_buffers", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers (without ``recurse`` this module's own), each once."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    # --- state -------------------------------------------------------------------------------

    def _named_state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers under every name they have: a shared one comes twice."""
        for own in (self._parameters, self._buffers):
            for name, t in own.items():
                if t is not None:
                    yield prefix + name, t
        for name, module in self._modules.items():
            if module is not None:
                yield from module._named_state(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name; they share this module's memory."""
        return {name: t.detach() for name, t in self._named_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values (tensors or arrays) in by name; dtypes are converted to the module's.

        Raises ValueError for missing or unexpected names (unless not ``strict``) and for shapes
        that differ, TypeError for what is no tensor, before anything is written.
        """
        where = f"load_state_dict into {type(self).__name__}"
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{where}: expected a dict of tensors by name, got {type(state_dict).__name__}; "
                "read a file with tinygrad_ish.load(path)"
            )
        own = dict(self._named_state())
        missing = [name for name in own if name not in state_dict]
        unexpected = [str(name) for name in state_dict if name not in own]
        problems = [f"missing: {', '.join(missing)}"] if strict and missing else []
        if strict and unexpected:
            problems.append(f"unexpected: {', '.join(unexpected)}")
        values = {name: as_tensor(state_dict[name]) for name in own if name in state_dict}
        problems += [
            f"{name}: expected shape {list(own[name].shape)}, got {list(value.shape)}"
            for name, value in values.items()
            if value.shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"{where}: {'; '.join(problems)}")
        with no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return LoadResult(missing, unexpected)

    def train(self, mode: bool = True) -> Module:
        """Put this module and all below it into training mode."""
        self.training = mode
        for m in self.children():
            m.train(mode)
        return self

    def eval(self) -> Module:
        """Put this module and all below it into evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Ask for the gradients of all parameters, or stop asking."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or zero them."""
        for p in self.parameters():
            clear_grad(p, set_to_none)

    def apply(self, fn: Callable[[Module], None]) -> Module:
        """Call ``fn`` on every module below, then on this one."""
        for m in self.children():
            m.apply(fn)
        fn(self)
        return self

    def to(
        self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False
    ) -> Module:
        """Move parameters and buffers to a device, or the floats among them to a float dtype, in
        place. Raises TypeError for another dtype. ``non_blocking`` is as in ``Tensor.to``."""
        for t in {id(t): t for _, t in self._named_state()}.values():
            floats = dtypes.is_float(t.dtype)
            with no_grad():
                moved = (t if floats else empty(0, device=t.backend)).to(
                    *args, device=device, dtype=dtype
                )
                if not dtypes.is_float(moved.dtype):
                    raise TypeError(f"to: expected a float dtype, got {moved.dtype.name}")
                moved = moved if floats else t.to(moved.backend)
            if moved is not t:
                t.data = moved
                t.grad = None if t.grad is None else t.grad.to(t.backend).to(t.dtype)
        return self

    def cpu(self) -> Module:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self) -> Module:
        """Move to the GPU."""
        return self.to("cuda")

    def float(self) -> Module:
        """Cast floats to float32."""
        return self.to(dtypes.float32)

    def double(self) -> Module:
        """Cast floats to float64."""
        return self.to(dtypes.float64)

    def half(self) -> Module:
        """Cast floats to float16."""
        return self.to(dtypes.float16)

    def bfloat16(self) -> Module:
        """Cast floats to bfloat16."""
        return self.to("bfloat16")

    # --- showing -----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands in the parentheses of ``repr``."""
        return ""

    def __repr__(self) -> str:
        own = [line for line in self.extra_repr().split("\n") if line]
        below = [f"({n}): {m!r}".replace("\n", "\n  ") for n, m in self._modules.items()]
        if len(own) <= 1 and not below:
            return f"{type(self).__name__}({''.join(own)})"
        return f"{type(self).__name__}(" + "".join(f"\n  {x}" for x in own + below) + "\n)"


def clear_grad(p: Tensor, set_to_none: bool) -> None:
    """Drop the gradient of a tensor, or zero it."""
    if set_to_none:
        p.grad = None
    elif p.grad is None:
        return
    else:
        p.grad.zero_()


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _once(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, t in named:
        if t is not None and id(t) not in seen:
            seen.add(id(t))
            yield name, t
