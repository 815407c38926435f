"""Mixed precision under PyTorch's names: products in 16 bits, the rest where it is safe, and the
loss scaled so that small gradients are not lost.

    scaler = tg.amp.GradScaler("cuda")
    ...
    with tg.autocast("cuda", tg.float16):
        loss = F.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()

bfloat16 has float32's range: it needs no scaler. Whether a step is left out is decided on the
device, so that all this can be compiled.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from . import dtypes
from .device import device
from .kernels import Backend, why_missing

if TYPE_CHECKING:
    from .optim import Optimizer

__all__ = ["GradScaler", "autocast"]

Method = TypeVar("Method", bound=Callable[..., Any])


# --- autocast --------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """A cast of a tensor, and when it was made."""

    tensor: _tensor.Tensor
    array: Any
    writes: int
    recorder: Any
    made: Any

    def holds(self) -> bool:
        """Whether the tensor is as it was, and nobody else is recording."""
        x = self.tensor
        same = x._array is self.array and x._version.count == self.writes
        return same and self.recorder is _autograd.recorder()


class _Region:
    """What is cast inside an autocast; the casts of weights are kept until its end."""

    def __init__(self, dtype: np.dtype, keeps: bool) -> None:
        self.dtype = dtype
        self._keeps = keeps
        self._casts: dict[int, _Kept] = {}

    def lower(self, x: _tensor.Tensor) -> _tensor.Tensor:
        """x in the region's dtype. A leaf that requires a gradient is cast once, unless it was
        written since; a recording makes casts of its own."""
        if not self._keeps or not x._requires_grad or x._node is not None:
            return x.to(self.dtype)
        kept = self._casts.get(id(x))
        made = kept.made if kept is not None and kept.holds() else None
        out = _elementwise.Cast.apply(x, dtype=self.dtype, made=made)
        if made is None:
            now = x._array, x._version.count, _autograd.recorder()
            self._casts[id(x)] = _Kept(x, *now, out._array)
        return out


class _Regions(threading.local):
    of: Mapping[str, _Region] = {}  # by device


_regions = _Regions()


def regions() -> tuple[tuple[str, str], ...]:
    """The devices that autocast is on for in this thread, and its dtypes: what a recording depends
    on."""
    if not _regions.of:
        return ()
    return tuple((where, region.dtype.name) for where, region in sorted(_regions.of.items()))


class autocast(contextlib.ContextDecorator):
    """Inside this context or decorated function ``linear`` and ``matmul`` compute in ``dtype``, a
    16-bit float, and losses, ``softmax``, ``layer_norm``, ``exp``, ``log``, ``pow`` and ``sum`` in
    float32; other operations take what comes. float64 stays as it is.

    Parameters stay float32, and so do their gradients: they are cast on the way, once in a region.
    ``dtype`` is float16 for "cuda" and bfloat16 for "cpu" unless given. The backward pass belongs
    outside. Without a GPU, "cuda" warns and does nothing.
    """

    def __init__(
        self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool = True
    ) -> None:
        self.device_type = device(device_type).type
        self.enabled = enabled and _present("autocast", self.device_type)
        self.cache_enabled = cache_enabled
        self.dtype = self._checked(dtype) if self.enabled else None
        self._before: list[Mapping[str, _Region]] = []

    def _checked(self, dtype: Any) -> np.dtype:
        if dtype is None:
            dtype = dtypes.float16 if self.device_type == "cuda" else "bfloat16"
        found = dtypes.as_dtype(dtype)
        if not dtypes.is_float(found) or found.itemsize != 2:
            raise TypeError(f"autocast: dtype must be float16 or bfloat16, got {found.name}")
        return found

    def __enter__(self) -> autocast:
        outer = _regions.of
        self._before.append(outer)
        inner = {where: region for where, region in outer.items() if where != self.device_type}
        if self.dtype is not None:
            known = outer.get(self.device_type)
            shared = known is not None and known.dtype == self.dtype
            new = _Region(self.dtype, self.cache_enabled)
            inner[self.device_type] = known if shared and known is not None else new
        _regions.of = inner
        return self

    def __exit__(self, *exception: object) -> None:
        _regions.of = self._before.pop()

    def _recreate_cm(self) -> autocast:  # for each call of a decorated function
        return autocast(self.device_type, self.dtype, self.enabled, self.cache_enabled)


def _present(name: str, device_type: str) -> bool:
    """Whether there is such a device; warns if not, as PyTorch does."""
    missing = why_missing("cupy") if device_type == "cuda" else None
    if missing is not None:
        warnings.warn(f"{name}: there is no GPU, so it is off. {missing}", stacklevel=4)
    return missing is None


def in_low_precision(function: Method) -> Method:
    """Let an operation compute in the dtype of autocast, where that is on."""
    return _casting(function, _lowered)


def in_float32(function: Method) -> Method:
    """Let an operation compute in float32 where autocast is on, and would come with 16 bits."""
    return _casting(function, _widened)


def _casting(function: Method, cast: Callable[[Any], Any]) -> Method:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _regions.of:
            return function(*args, **kwargs)
        return function(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    return call  # type: ignore[return-value]


def _region(x: Any) -> _Region | None:
    """The region that a floating tensor is in; float64 is in none."""
    if not isinstance(x, _tensor.Tensor) or not dtypes.is_float(x.dtype):
        return None
    return None if x.dtype == dtypes.float64 else _regions.of.get(x.backend.device)


def _lowered(x: Any) -> Any:
    region = _region(x)
    return x if region is None or x.dtype == region.dtype else region.lower(x)


def _widened(x: Any) -> Any:
    return x if _region(x) is None else x.to(dtypes.float32)


# --- loss scaling ----------------------------------------------------------------------------


class GradScaler:
    """Multiplies the loss so that gradients of 16 bits do not vanish, divides the gradients by it
    again, and leaves out a step whose gradients are not finite, as ``torch.amp.GradScaler``.

    After such a step the scale is multiplied by ``backoff_factor``, after ``growth_interval`` steps
    without one by ``growth_factor``. Scale and decision stay on the device, where kernels advance
    them: nothing waits for them, and a compiled step may hold ``scale``, ``step`` and ``update``.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device = _device_type(device)  # the argument hides the class
        self._enabled = enabled and _present("GradScaler", self._device)
        self._settings: dict[str, Any] = {}
        self._take(init_scale, growth_factor, backoff_factor, growth_interval, 0)
        self._backend: Backend | None = None
        self._stages: dict[int, str] = {}  # of optimizers since the last update, by id
        self._found: weakref.WeakKeyDictionary[Optimizer, Any] = weakref.WeakKeyDictionary()

    def _take(self, scale: float, growth: float, backoff: float, interval: int, count: int) -> None:
        """Check and keep the settings, and where scale and count begin."""
        whole = isinstance(interval, int) and isinstance(count, int)
        if not (0 < scale < math.inf and growth > 1 and 0 < backoff < 1):
            raise ValueError(
                "GradScaler: expected a scale above 0, growth_factor above 1 and backoff_factor "
                f"between 0 and 1, got {scale}, {growth} and {backoff}"
            )
        if not whole or interval < 1 or not 0 <= count < interval:
            raise ValueError(
                "GradScaler: growth_interval must be an int of 1 or more, and the growth tracker "
                f"an int from 0 on below it; got {interval} and {count}"
            )
        self._begin = [float(scale), float(count)]
        self._settings = {
            "growth_factor": float(growth),
            "backoff_factor": float(backoff),
            "growth_interval": interval,
        }

    def is_enabled(self) -> bool:
        """Whether it does anything."""
        return self._enabled

    def scale(self, outputs: Any) -> Any:
        """A loss, or each of a tuple or list of them, times the scale: float32 at least."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(self.scale(x) for x in outputs)
        if not isinstance(outputs, _tensor.Tensor):
            raise TypeError(f"GradScaler.scale: expected a Tensor, got {type(outputs).__name__}")
        self._on(outputs.backend)
        dtype = dtypes.promote(outputs.dtype, dtypes.float32)
        return outputs.to(dtype) * self._scale.to(dtype)

    def _on(self, backend: Backend) -> None:
        """Keep the state on this backend, that of the first loss."""
        if backend.device != self._device:
            raise ValueError(
                f"GradScaler: the loss is on {backend.device}, the scaler on {self._device}; make "
                f"it with GradScaler({backend.device!r})"
            )
        if self._backend is None:
            self._backend = backend
            self._state = backend.asarray(np.array(self._begin))
            self._scale = _tensor.Tensor(self._state[:1].reshape(()), backend)
        elif backend is not self._backend:
            _autograd.refuse_mixed("GradScaler", self._backend, backend)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, in place, and note on
        the device whether one is infinite or NaN. ``step`` does it, unless it was done before: to
        clip gradients, call this first.

        Raises ValueError if they were divided before, or nothing was scaled.
        """
        if not self._enabled:
            return
        stage = self._stages.get(id(optimizer))
        if stage is not None:
            raise ValueError(
                "GradScaler: unscale_() was called for this optimizer already since the last "
                "update()" if stage == "unscaled" else "GradScaler: unscale_() comes after step()"
            )  # fmt: skip
        grads = list(self._gradients(optimizer))
        if self._backend is None or not grads:
            raise ValueError(
                "GradScaler: there is nothing to unscale; call scaler.scale(loss).backward() with "
                "a loss that depends on the optimizer's parameters"
            )
        if optimizer not in self._found:
            self._found[optimizer] = self._backend.asarray(np.zeros(()))
        arrays = tuple(g._array for g in grads)
        self._backend.unscale_step(arrays, self._state, self._found[optimizer])
        for g in grads:
            g._version.bump("GradScaler.unscale_")
        self._stages[id(optimizer)] = "unscaled"

    def _gradients(self, optimizer: Optimizer) -> Iterator[_tensor.Tensor]:
        for group in optimizer.param_groups:
            for p in group["params"]:
                g = p.grad
                if g is None:
                    continue
                if g.backend is not self._backend and self._backend is not None:
                    _autograd.refuse_mixed("GradScaler", self._backend, g.backend)
                if g.dtype == dtypes.float16:
                    raise ValueError(
                        "GradScaler: a gradient is float16, which is too coarse to unscale; keep "
                        "the parameters in float32 and compute under autocast"
                    )
                yield g

    def step(self, optimizer: Optimizer) -> None:
        """``optimizer.step()``, after ``unscale_`` unless that was called; parameters and the
        optimizer's state stay as they are if a gradient is not finite."""
        if not self._enabled:
            optimizer.step()
            return
        stage = self._stages.get(id(optimizer))
        if stage == "stepped":
            raise ValueError("GradScaler: step() was called already since the last update()")
        if stage is None:
            self.unscale_(optimizer)
        with optimizer.left_out_if(self._found[optimizer]):
            optimizer.step()
        self._stages[id(optimizer)] = "stepped"

    def update(self, new_scale: float | None = None) -> None:
        """The scale for the next step, or ``new_scale``; call it once after the ``step`` of every
        optimizer, in the same compiled function as these, or in none."""
        if not self._enabled:
            return
        found = [self._found[o] for o in self._found if id(o) in self._stages]
        if self._backend is None or not found:
            raise ValueError("GradScaler: update() comes after unscale_() or step()")
        if new_scale is not None:
            self._scale.fill_(new_scale)
        else:
            largest = functools.reduce(self._backend.maximum, found)
            self._backend.scale_step(self._state, largest, *self._settings.values())
            self._scale._version.bump("GradScaler.update")
        self._stages = {}

    def get_scale(self) -> float:
        """The scale, read from the device; 1 if not enabled."""
        return float(self._now()[0]) if self._enabled else 1.0

    def _now(self) -> list[float]:
        if self._backend is None:
            return self._begin
        self._scale._refuse_read("get_scale()")
        values: list[float] = self._state.tolist()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Scale, settings and count, as PyTorch's; empty if not enabled."""
        if not self._enabled:
            return {}
        scale, count = self._now()
        return {"scale": scale, **self._settings, "_growth_tracker": int(count)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        if not self._enabled:
            return
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        if set(state_dict) != set(names):
            raise ValueError(
                f"GradScaler: the state must hold {', '.join(names)}; got "
                f"{', '.join(map(str, state_dict)) or 'nothing: was that scaler enabled?'}"
            )
        self._take(*(state_dict[name] for name in names))
        if self._backend is not None:
            self._backend.copy(self._backend.asarray(np.array(self._begin)), out=self._state)


def _device_type(name: str) -> str:
    return device(name).type


# Last, because these import the names above.
from . import autograd as _autograd  # noqa: E402
from . import tensor as _tensor  # type: ignore[no-redef]  # noqa: E402
from .ops import elementwise as _elementwise  # noqa: E402
